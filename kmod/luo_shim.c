// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the dispatch needs and Rust cannot say. Each function says why it is here.
 */
#define pr_fmt(fmt) "luo_handlers: " fmt

#include <linux/container_of.h>
#include <linux/crc32.h>
#include <linux/io.h>
#include <linux/kexec_handover.h>
#include <linux/liveupdate.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/string.h>
#include <asm/sections.h>

#include "luo_shim.h"

#undef MODULE_PARAM_PREFIX
#define MODULE_PARAM_PREFIX "luo_handlers."

static char *disable;
module_param(disable, charp, 0444);
MODULE_PARM_DESC(disable, "Handlers that take no new files, by name, separated by commas");

/* Parameters are declared by macros; Rust's have no texts yet. */
const char *luo_disabled(void)
{
	return disable ? disable : "";
}

/* For the shims of handlers. */
bool luo_is_disabled(const char *name)
{
	const char *word = luo_disabled();
	size_t length;

	for (; *word; word += strspn(word, ", ")) {
		length = strcspn(word, ", ");
		if (length == strlen(name) && !strncmp(word, name, length))
			return true;
		word += length;
	}
	return false;
}

extern const void *__start_luo_handlers[] __weak;
extern const void *__stop_luo_handlers[] __weak;

/*
 * Symbols of the linker, weak because there is no section without any handler. One
 * that the linker script does not know is put where the linker likes, with lld
 * behind the end of the kernel's memory: that is not to be touched.
 */
void luo_section(const void ***start, const void ***stop)
{
	bool inside = (char *)__start_luo_handlers >= _text &&
		      (char *)__stop_luo_handlers <= _end;

	if (__start_luo_handlers && !inside)
		pr_err("no handlers: the linker script does not place the section luo_handlers\n");
	*start = inside ? __start_luo_handlers : NULL;
	*stop = inside ? __stop_luo_handlers : NULL;
}

/* A handler as mainline knows it, and as the dispatch does. */
struct luo_slot {
	struct liveupdate_file_handler fh;
	struct liveupdate_file_ops ops;
	const void *handler;
};

static struct luo_slot slots[LUO_MAX_HANDLERS];
static unsigned int nr_slots;

/* The trampolines below need container_of() on a struct without a binding. */
static const void *handler_of(struct liveupdate_file_handler *fh)
{
	return container_of(fh, struct luo_slot, fh)->handler;
}

static bool slot_can_preserve(struct liveupdate_file_handler *fh, struct file *file)
{
	return luo_can_preserve(handler_of(fh), file);
}

static int slot_preserve(struct liveupdate_file_op_args *args)
{
	return luo_preserve(handler_of(args->handler), args->file,
			    &args->serialized_data, &args->private_data);
}

static void slot_unpreserve(struct liveupdate_file_op_args *args)
{
	luo_unpreserve(handler_of(args->handler), args->file,
		       args->serialized_data, args->private_data);
}

static int slot_freeze(struct liveupdate_file_op_args *args)
{
	return luo_freeze(handler_of(args->handler), args->file,
			  &args->serialized_data, args->private_data);
}

static void slot_unfreeze(struct liveupdate_file_op_args *args)
{
	luo_unfreeze(handler_of(args->handler), args->file,
		     args->serialized_data, args->private_data);
}

static int slot_retrieve(struct liveupdate_file_op_args *args)
{
	return luo_retrieve(handler_of(args->handler), args->serialized_data, &args->file);
}

static bool slot_can_finish(struct liveupdate_file_op_args *args)
{
	return luo_can_finish(handler_of(args->handler), args->file,
			      args->serialized_data, args->retrieve_status);
}

static void slot_finish(struct liveupdate_file_op_args *args)
{
	luo_finish(handler_of(args->handler), args->file,
		   args->serialized_data, args->retrieve_status);
}

/* get_id() is the one op that is not told its handler: each slot has its own. */
#define GET_ID(n)						\
	static unsigned long slot_get_id_##n(struct file *file)	\
	{							\
		return luo_get_id(slots[n].handler, file);	\
	}
#define EACH_SLOT(what)							\
	what(0) what(1) what(2) what(3) what(4) what(5) what(6) what(7)	\
	what(8) what(9) what(10) what(11) what(12) what(13) what(14) what(15)
#define NAMED(n) slot_get_id_##n,

EACH_SLOT(GET_ID)
static unsigned long (*const slot_get_id[])(struct file *) = { EACH_SLOT(NAMED) };
static_assert(ARRAY_SIZE(slot_get_id) == LUO_MAX_HANDLERS);

/* Structs of mainline without a binding; handlers stay registered for good. */
int luo_register(const char *compatible, const void *handler)
{
	struct luo_slot *slot;
	int err;

	if (nr_slots == LUO_MAX_HANDLERS)
		return -ENOSPC;
	slot = &slots[nr_slots];
	slot->handler = handler;
	slot->ops = (struct liveupdate_file_ops) {
		.can_preserve = slot_can_preserve,
		.preserve = slot_preserve,
		.unpreserve = slot_unpreserve,
		.freeze = slot_freeze,
		.unfreeze = slot_unfreeze,
		.retrieve = slot_retrieve,
		.can_finish = slot_can_finish,
		.finish = slot_finish,
		.get_id = slot_get_id[nr_slots],
		.owner = THIS_MODULE,
	};
	slot->fh.ops = &slot->ops;
	strscpy((char *)slot->fh.compatible, compatible, sizeof(slot->fh.compatible));
	err = liveupdate_register_file_handler(&slot->fh);
	if (!err)
		nr_slots++;
	return err;
}

/*
 * Bytes that cross are whole pages from kho_alloc_preserve(). Until the jump the
 * first of them says in page->private that it is one of ours, and how long the
 * bytes are, so that a number that is no handle is not taken for one.
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

/*
 * What the previous kernel kept is looked at and given back under this: two sessions
 * that name the same memory may be finished at the same time.
 */
DEFINE_MUTEX(luo_incoming);

/* The same on the other side of the jump; the caller holds luo_incoming. */
static void *bytes_incoming(unsigned long pfn, size_t len)
{
	int order = luo_kept_order(pfn);

	if (order < 0 || !len || len > PAGE_SIZE << order)
		return NULL;
	return page_address(pfn_to_page(pfn));
}

/* Page structs, as above. */
bool luo_bytes_are_incoming(unsigned long pfn, size_t len)
{
	guard(mutex)(&luo_incoming);
	return bytes_incoming(pfn, len);
}

/* The lock; @offset and @count lie within @len. */
int luo_bytes_copy(unsigned long pfn, size_t len, size_t offset, void *buffer, size_t count)
{
	void *bytes;

	guard(mutex)(&luo_incoming);
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

/* The lock, and no binding. Does nothing if there are none. */
void luo_bytes_free(unsigned long pfn, size_t len)
{
	void *bytes;

	guard(mutex)(&luo_incoming);
	bytes = bytes_incoming(pfn, len);
	if (bytes)
		kho_restore_free(bytes);
}

/*
 * How KHO marks, on the new side, the first page of each preservation that nobody
 * has restored yet: kernel/liveupdate/kexec_handover.c. It keeps this to itself and
 * warns when asked to restore anything else. But a number that comes from the
 * previous kernel is no reason for a warning, and with panic_on_warn for a panic,
 * so we look before we ask. Should the mark change, every restore fails with an
 * error; nothing worse.
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
int luo_kept_order(unsigned long pfn)
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
