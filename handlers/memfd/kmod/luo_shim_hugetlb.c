// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the memfd handler needs of hugetlb, most of which is internal to mm.
 *
 * A page that came over a kexec is a surplus page that belongs to its file (hugetlb.patch): it
 * takes nothing from the pool of this kernel, neither pages nor reservations nor what
 * nr_overcommit_hugepages allows, and goes to the buddy allocator when it leaves the file.
 */
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/hugetlb_cgroup.h>
#include <linux/kexec_handover.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/version.h>

#include "luo_shim.h"
#include "luo_shim_memfd.h"

#ifdef CONFIG_HUGETLBFS
#include "../../kernel/liveupdate/kexec_handover_internal.h"
#include "../../mm/hugetlb_internal.h"
#include "../../mm/hugetlb_vmemmap.h"
#include "../../mm/internal.h"

/* Macros: the binary logarithm of the size of the file's own pages, 0 if it is not of hugetlbfs. */
u32 luo_hugetlb_shift(struct file *file)
{
	return is_file_hugepages(file) ? huge_page_shift(hstate_file(file)) : 0;
}

/* inode_lock() is a static inline. */
void luo_hugetlb_fix_size(struct file *file, bool fix)
{
	struct inode *inode = file_inode(file);

	inode_lock(inode);
	hugetlb_fix_size(inode, fix);
	inode_unlock(inode);
}

u64 luo_hugetlb_hold_holes(struct file *file)
{
	return hugetlb_hold_holes(file_inode(file));
}

void luo_hugetlb_release_holes(struct file *file)
{
	hugetlb_release_holes(file_inode(file));
}

/* struct kho_scratch: the memory that the next kernel boots in. */
bool luo_hugetlb_can_stay(struct folio *folio)
{
	phys_addr_t start = PFN_PHYS(folio_pfn(folio)), end = start + folio_size(folio);
	unsigned int i;

	for (i = 0; i < kho_scratch_cnt; i++)
		if (start < kho_scratch[i].addr + kho_scratch[i].size && end > kho_scratch[i].addr)
			return false;
	return true;
}

/* The pages of this kernel of that size, if it can also free those that are huge to it. */
static struct hstate *find_hstate(u32 shift)
{
	struct hstate *h = shift < BITS_PER_LONG ? size_to_hstate(1UL << shift) : NULL;

	return h && !hstate_is_gigantic_no_runtime(h) ? h : NULL;
}

/*
 * As luo_memfd_has_room(), for pages in folios of that size: -EOPNOTSUPP if this kernel has none.
 */
int luo_hugetlb_has_room(u32 shift, u64 pages)
{
	struct hstate *h = find_hstate(shift);
	struct hugetlb_cgroup *cgroup;
	int idx;

	if (!h)
		return -EOPNOTSUPP;
	idx = hstate_index(h);
	if (hugetlb_cgroup_charge_cgroup(idx, pages, &cgroup))
		return -EAGAIN;
	hugetlb_cgroup_uncharge_cgroup(idx, pages, cgroup);
	if (hugetlb_cgroup_charge_cgroup_rsvd(idx, pages, &cgroup))
		return -EAGAIN;
	hugetlb_cgroup_uncharge_cgroup_rsvd(idx, pages, cgroup);
#ifdef CONFIG_MEMCG
	if (cgrp_dfl_root.flags & CGRP_ROOT_MEMORY_HUGETLB_ACCOUNTING)
		return luo_memfd_has_room(pages);
#endif
	return 0;
}

/*
 * Whether workers may insert parts of such a file. What a worker takes is charged to its own
 * hugetlb cgroup, which is the root. For memory cgroups there is set_active_memcg(), which
 * mem_cgroup_charge_hugetlb() heeds from 7.3 on.
 */
bool luo_hugetlb_in_parts(void)
{
#ifdef CONFIG_CGROUP_HUGETLB
	if (!hugetlb_cgroup_disabled() && !task_css_is_root(current, hugetlb_cgrp_id))
		return false;
#endif
#if defined(CONFIG_MEMCG) && LINUX_VERSION_CODE < KERNEL_VERSION(7, 3, 0)
	if (cgrp_dfl_root.flags & CGRP_ROOT_MEMORY_HUGETLB_ACCOUNTING)
		return false;
#endif
	return true;
}

/* What a folio is charged to, as hugetlb_alloc_folio() does without a reservation. */
struct charges {
	struct hugetlb_cgroup *used;
	struct hugetlb_cgroup *reserved;
};

static int charge(struct hstate *h, struct charges *charges)
{
	unsigned long pages = pages_per_huge_page(h);
	int idx = hstate_index(h);

	if (hugetlb_cgroup_charge_cgroup_rsvd(idx, pages, &charges->reserved))
		return -ENOSPC;
	if (!hugetlb_cgroup_charge_cgroup(idx, pages, &charges->used))
		return 0;
	hugetlb_cgroup_uncharge_cgroup_rsvd(idx, pages, charges->reserved);
	return -ENOSPC;
}

static void uncharge(struct hstate *h, struct charges *charges)
{
	unsigned long pages = pages_per_huge_page(h);
	int idx = hstate_index(h);

	hugetlb_cgroup_uncharge_cgroup(idx, pages, charges->used);
	hugetlb_cgroup_uncharge_cgroup_rsvd(idx, pages, charges->reserved);
}

/* Makes one hugetlb folio of what was preserved at @pfn, and puts it on @folios. */
static int revive(struct hstate *h, u64 pfn, struct list_head *folios)
{
	unsigned long pages = pages_per_huge_page(h);
	int idx = hstate_index(h), err;
	struct charges charged;
	struct folio *folio;

	err = charge(h, &charged);
	if (err)
		return err;
	folio = luo_folio_take_back(pfn, huge_page_order(h));
	if (!folio) {
		uncharge(h, &charged);
		return -EINVAL;
	}
	init_new_hugetlb_folio(folio);
	if (!hugetlb_cgroup_disabled()) {
		spin_lock_irq(&hugetlb_lock);
		hugetlb_cgroup_commit_charge(idx, pages, charged.used, folio);
		hugetlb_cgroup_commit_charge_rsvd(idx, pages, charged.reserved, folio);
		spin_unlock_irq(&hugetlb_lock);
	}
	list_add_tail(&folio->lru, folios);
	return 0;
}

/*
 * For many at once the kernel flushes the TLBs of all processors, also where it does not optimise
 * the vmemmap at all. So one of them first.
 */
static void optimize_vmemmap(struct hstate *h, struct list_head *folios)
{
	struct folio *first = list_first_entry_or_null(folios, struct folio, lru);

	if (!first)
		return;
	hugetlb_vmemmap_optimize_folio(h, first);
	if (folio_test_hugetlb_vmemmap_optimized(first))
		hugetlb_vmemmap_optimize_folios(h, folios);
}

/* Puts a folio into the page cache, which takes over our reference, or drops it. */
static int insert(struct hstate *h, struct address_space *mapping, struct folio *folio,
		  pgoff_t place, int err)
{
	gfp_t gfp = htlb_alloc_mask(h) | __GFP_RETRY_MAYFAIL;

	if (!err)
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 3, 0)
		/* The active memory cgroup, in a worker; otherwise that of the task's mm. */
		err = mem_cgroup_charge_hugetlb(folio, NULL, gfp);
#else
		err = mem_cgroup_charge_hugetlb(folio, gfp);
#endif
	/* Freeing a folio decrements it, charged or not. */
	lruvec_stat_mod_folio(folio, NR_HUGETLB, pages_per_huge_page(h));
	if (!err) {
		__folio_mark_uptodate(folio);
		err = hugetlb_add_to_page_cache(folio, mapping, place);
	}
	if (!err) {
		folio_set_hugetlb_migratable(folio);
		folio_unlock(folio);
	}
	folio_put(folio);
	return err;
}

/* Folios of one run that are made together: what is done for all of them at once is cheap then. */
#define FOLIOS_AT_ONCE 512

/* The folios from @pfn on, in consecutive places from @place on; @came is how many went in. */
static int insert_some(struct hstate *h, struct address_space *mapping, u64 pfn, pgoff_t place,
		       unsigned int count, unsigned int *came)
{
	unsigned int taken, i;
	struct folio *folio, *next;
	LIST_HEAD(folios);
	int err = 0, failed = 0;

	for (taken = 0; taken < count; taken++) {
		err = luo_pause();
		if (!err)
			err = revive(h, pfn + ((u64)taken << huge_page_order(h)), &folios);
		if (err)
			break;
	}
	luo_folios_manage(pfn, huge_page_order(h), taken);
	optimize_vmemmap(h, &folios);
	spin_lock_irq(&hugetlb_lock);
	list_for_each_entry_safe(folio, next, &folios, lru) {
		hugetlb_account_crossed(folio);
		folio_ref_unfreeze(folio, 1);
	}
	spin_unlock_irq(&hugetlb_lock);
	*came = 0;
	for (i = 0; i < taken; i++) {
		folio = pfn_folio(pfn + ((u64)i << huge_page_order(h)));
		failed = insert(h, mapping, folio, place + i, failed);
		*came += !failed;
	}
	return err ? : failed;
}

static int insert_run(struct hstate *h, struct inode *inode, const struct luo_run *run)
{
	unsigned int order = huge_page_order(h), came;
	u64 pages = run->pages >> order;
	pgoff_t first = run->index >> order;
	u64 done, some;
	long regions;
	int err = 0;

	if (run->order != order)
		return -EINVAL;
	for (done = 0; done < pages && !err; done += some) {
		pgoff_t place = first + done;

		some = min_t(u64, pages - done, FOLIOS_AT_ONCE);
		err = hugetlb_expect_pages(inode, place, place + some, &regions);
		if (err)
			break;
		err = insert_some(h, inode->i_mapping, run->pfn + (done << order), place, some,
				  &came);
		hugetlb_pages_came(inode, place, place + came, place + some, regions);
	}
	return err;
}

/* The same as luo_memfd_insert(), of a file of hugetlbfs. */
int luo_hugetlb_insert(struct file *file, const struct luo_run *runs, u32 count)
{
	struct inode *inode = file_inode(file);
	int err = 0;
	u32 i;

	for (i = 0; i < count && !err; i++)
		err = insert_run(hstate_inode(inode), inode, &runs[i]);
	return err;
}
#else
u32 luo_hugetlb_shift(struct file *file)
{
	return 0;
}

void luo_hugetlb_fix_size(struct file *file, bool fix)
{
}

u64 luo_hugetlb_hold_holes(struct file *file)
{
	return 0;
}

void luo_hugetlb_release_holes(struct file *file)
{
}

bool luo_hugetlb_can_stay(struct folio *folio)
{
	return true;
}

int luo_hugetlb_has_room(u32 shift, u64 pages)
{
	return -EOPNOTSUPP;
}

bool luo_hugetlb_in_parts(void)
{
	return false;
}

int luo_hugetlb_insert(struct file *file, const struct luo_run *runs, u32 count)
{
	return -EOPNOTSUPP;
}
#endif
