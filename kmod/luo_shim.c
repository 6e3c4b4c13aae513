// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the module needs and Rust cannot express. The comment of each function begins
 * with why it is here.
 */
#define pr_fmt(fmt) "luo_handlers: " fmt

#include <linux/container_of.h>
#include <linux/crc32.h>
#include <linux/hash.h>
#include <linux/io.h>
#include <linux/kexec_handover.h>
#include <linux/liveupdate.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/pgtable.h>
#include <linux/refcount.h>
#include <asm/sections.h>

#include "luo_shim.h"

#undef MODULE_PARAM_PREFIX
#define MODULE_PARAM_PREFIX "luo_handlers."

/* A handler that is switched off takes no new files. */
static char *disable;
module_param(disable, charp, 0444);
MODULE_PARM_DESC(disable, "Handlers and subsystems to switch off, by name, separated by commas");

/* Parameters are declared by macros; Rust's have no texts yet. */
const char *luo_disabled(void)
{
	return disable ? disable : "";
}

/* What Kconfig has switched on, from the Makefile. */
const char *luo_switched_on(void)
{
	return LUO_SWITCHED_ON;
}

/*
 * Symbols of the linker, weak because there is no section without any entry. One that
 * the linker script does not know is put where the linker likes, with lld after the
 * end of the kernel's memory: that must not be touched.
 */
#define LUO_SECTION(name)								\
extern const void *__start_##name[] __weak;						\
extern const void *__stop_##name[] __weak;						\
void name##_section(const void ***start, const void ***stop)				\
{											\
	bool inside = (char *)__start_##name >= _text && (char *)__stop_##name <= _end;	\
											\
	if (__start_##name && !inside)							\
		pr_err("the linker script does not place the section " #name "\n");	\
	*start = inside ? __start_##name : NULL;					\
	*stop = inside ? __stop_##name : NULL;						\
}

LUO_SECTION(luo_handlers)
LUO_SECTION(luo_subsystems)

/*
 * Mainline counts every finished file down from the number of files that the subsystem
 * came in with. If it did not come in, because the previous kernel did not have it,
 * that is 0, and counting down from 0 warns. A number that is never used up does not.
 */
void luo_flb_did_not_come(struct liveupdate_flb *flb)
{
	refcount_set(&ACCESS_PRIVATE(flb, private).incoming.count, INT_MAX / 2);
}

/*
 * Bytes that cross are whole pages from kho_alloc_preserve(). Until the jump the
 * first of them has in page->private a mark that it is ours, and the length of the
 * bytes, so that a wrong number is not taken for a handle.
 */
#define BYTES_MAGIC 0x4c554f42UL /* ASCII for 'LUOB' */

static unsigned long bytes_mark(size_t len)
{
	return BYTES_MAGIC << 32 | len;
}

/* page->private and virt_to_page() are macros and bit fields to Rust. */
int luo_bytes_preserve(size_t len, void **bytes, unsigned long *pfn)
{
	void *memory = kho_alloc_preserve(len);

	if (IS_ERR(memory))
		return PTR_ERR(memory);
	set_page_private(virt_to_page(memory), bytes_mark(len));
	*bytes = memory;
	*pfn = PHYS_PFN(virt_to_phys(memory));
	return 0;
}

/* pfn_to_online_page() and page->private, again. */
void *luo_bytes_outgoing(unsigned long pfn, size_t len)
{
	struct page *page = pfn_to_online_page(pfn);

	if (!page || page_private(page) != bytes_mark(len))
		return NULL;
	return page_address(page);
}

#define INCOMING_BITS 6
static struct mutex incoming[1 << INCOMING_BITS];

static int __init init_incoming(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(incoming); i++)
		mutex_init(&incoming[i]);
	return 0;
}
core_initcall(init_incoming);

/*
 * What the previous kernel preserved is read and given back under the lock of the PMD that it
 * begins in: two sessions that name the same memory may be finished at the same time. There are
 * several locks, so that processors which take back parts of one file do not wait for each other.
 */
struct mutex *luo_incoming(unsigned long pfn)
{
	return &incoming[hash_long(pfn >> (PMD_SHIFT - PAGE_SHIFT), INCOMING_BITS)];
}

/* The same on the other side of the jump; the caller holds the lock. */
static void *bytes_incoming(unsigned long pfn, size_t len)
{
	int order = luo_preserved_order(pfn);

	if (order < 0 || !len || len > PAGE_SIZE << order)
		return NULL;
	return page_address(pfn_to_page(pfn));
}

/* Page structs, as above. */
bool luo_bytes_are_incoming(unsigned long pfn, size_t len)
{
	guard(mutex)(luo_incoming(pfn));
	return bytes_incoming(pfn, len);
}

/* The lock; @offset and @count lie within @len. */
int luo_bytes_copy(unsigned long pfn, size_t len, size_t offset, void *buffer, size_t count)
{
	void *bytes;

	guard(mutex)(luo_incoming(pfn));
	bytes = bytes_incoming(pfn, len);
	if (!bytes)
		return -ENOENT;
	memcpy(buffer, bytes + offset, count);
	return 0;
}

/* set_page_private() is a static inline. */
void luo_bytes_unpreserve(void *bytes)
{
	set_page_private(virt_to_page(bytes), 0);
	kho_unpreserve_free(bytes);
}

/* The lock, and no binding. Does nothing if there are no such bytes. */
void luo_bytes_free(unsigned long pfn, size_t len)
{
	void *bytes;

	guard(mutex)(luo_incoming(pfn));
	bytes = bytes_incoming(pfn, len);
	if (bytes)
		kho_restore_free(bytes);
}

/*
 * How KHO marks, on the new side, the first page of each preservation that nobody has
 * restored yet: kernel/liveupdate/kexec_handover.c. It does not export this and warns
 * when asked to restore anything else. But a number that comes from the previous
 * kernel must not cause a warning, or with panic_on_warn a panic, so we look before
 * we ask. Should the mark change, every restore fails with an error; nothing worse.
 */
#define KHO_PAGE_MAGIC 0x4b484f50U

union kho_page_info {
	unsigned long page_private;
	struct {
		unsigned int order;
		unsigned int magic;
	};
};

/* page->private: order of what the previous kernel preserved at @pfn, or -ENOENT. */
int luo_preserved_order(unsigned long pfn)
{
	struct page *page = pfn_to_online_page(pfn);
	union kho_page_info info;

	if (!page)
		return -ENOENT;
	info.page_private = page_private(page);
	if (info.magic != KHO_PAGE_MAGIC || info.order >= BITS_PER_LONG - PAGE_SHIFT ||
	    !IS_ALIGNED(pfn, 1UL << info.order))
		return -ENOENT;
	return info.order;
}

/* The kernel's leaves the inversion to its callers. */
u32 luo_crc32c(u32 so_far, const void *bytes, size_t len)
{
	return ~crc32c(~so_far, bytes, len);
}
