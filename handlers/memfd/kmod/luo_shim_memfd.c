// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the memfd handler needs and Rust cannot say: functions that are internal to
 * mm, static inlines, and loops over pages that are too hot for a call each. Each
 * function says why it is here. What to do with all this is decided in Rust.
 */
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/kexec_handover.h>
#include <linux/memcontrol.h>
#include <linux/memfd.h>
#include <linux/memory_hotplug.h>
#include <linux/mm_inline.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>
#include <uapi/linux/memfd.h>

#include "../../mm/internal.h"
#include "luo_shim.h"
#include "luo_shim_memfd.h"

static_assert(LUO_FOUND_MAX == FOLIO_BATCH_SIZE);

/* The status flags that F_SETFL can change, and O_ACCMODE. */
#define KEPT_FLAGS (O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME)

/* shmem_file() is a static inline; the rule is that of mm/memfd_luo.c. */
bool luo_memfd_is_known(struct file *file)
{
	return shmem_file(file) && !file_inode(file)->i_nlink;
}

/* file_inode() is a static inline. */
unsigned long luo_memfd_id(struct file *file)
{
	return (unsigned long)file_inode(file);
}

/* shmem_freeze() and inode_lock() are static inlines. */
void luo_memfd_freeze(struct file *file, bool freeze)
{
	struct inode *inode = file_inode(file);

	inode_lock(inode);
	shmem_freeze(inode, freeze);
	inode_unlock(inode);
}

/* i_size_read() and struct shmem_inode_info. */
int luo_memfd_attributes(struct file *file, struct luo_memfd_attributes *attributes)
{
	struct inode *inode = file_inode(file);
	int seals = memfd_get_seals(file);

	if (seals < 0)
		return seals;
	*attributes = (struct luo_memfd_attributes) {
		.size = i_size_read(inode),
		.position = file->f_pos,
		.seals = seals,
		.flags = file->f_flags & (O_ACCMODE | KEPT_FLAGS),
		.mode = inode->i_mode & 07777,
	};
	return 0;
}

/* Pages in memory and in swap; struct shmem_inode_info. */
u64 luo_memfd_pages(struct file *file)
{
	struct inode *inode = file_inode(file);

	/* A page on its way from one to the other counts twice, never not at all. */
	return READ_ONCE(SHMEM_I(inode)->swapped) + READ_ONCE(inode->i_mapping->nrpages);
}

/*
 * Reclaim takes a folio out of the page cache under its lock. Whoever finds it
 * unlocked after taking a reference is safe: reclaim leaves alone what it did not
 * count. Otherwise wait and look whether it is still there.
 */
static bool folio_is_staying(struct folio *folio, struct address_space *mapping)
{
	bool staying;

	if (likely(!folio_test_locked(folio)))
		return true;
	folio_lock(folio);
	staying = folio->mapping == mapping;
	folio_unlock(folio);
	return staying;
}

static enum luo_found_state state_of(struct folio *folio, struct address_space *mapping)
{
	if (!folio_is_staying(folio, mapping))
		return LUO_FOUND_GONE;
	if (folio_contain_hwpoisoned_page(folio))
		return LUO_FOUND_POISONED;
	if (!folio_is_longterm_pinnable(folio))
		return LUO_FOUND_MOVABLE;
	if (!folio_test_uptodate(folio))
		return LUO_FOUND_UNWRITTEN;
	return LUO_FOUND_HELD;
}

/*
 * find_get_entries() is internal to mm, and so is what it finds. Only folios that
 * are HELD or UNWRITTEN keep the reference.
 */
u32 luo_memfd_find(struct file *file, u64 *start, u64 last, struct luo_found *found)
{
	struct address_space *mapping = file->f_mapping;
	pgoff_t indices[FOLIO_BATCH_SIZE], next = *start;
	struct folio_batch batch;
	u32 i;

	cond_resched();
	folio_batch_init(&batch);
	find_get_entries(mapping, &next, last, &batch, indices);
	*start = next;
	for (i = 0; i < folio_batch_count(&batch); i++) {
		struct folio *folio = batch.folios[i];

		if (xa_is_value(folio)) {
			found[i] = (struct luo_found) {
				.index = indices[i],
				.state = LUO_FOUND_SWAPPED,
			};
			continue;
		}
		found[i] = (struct luo_found) {
			.index = folio->index,
			.pfn = folio_pfn(folio),
			.pages = folio_nr_pages(folio),
			.order = folio_order(folio),
			.state = state_of(folio, mapping),
		};
		if (found[i].state > LUO_FOUND_UNWRITTEN) {
			/* It may be gone while it was looked at. */
			if (found[i].state == LUO_FOUND_GONE)
				found[i].index = indices[i];
			folio_put(folio);
		}
	}
	return i;
}

/* shmem_get_folio() is internal; a hole stays one. */
int luo_memfd_swap_in(struct file *file, u64 index)
{
	struct folio *folio = NULL;
	int err = shmem_get_folio(file_inode(file), index, 0, &folio, SGP_READ);

	if (!err && folio) {
		folio_unlock(folio);
		folio_put(folio);
	}
	return err;
}

/*
 * memfd_pin_folios() has no binding. It moves what it pins out of CMA and movable
 * memory, which is all we want of it. It fills holes: there must be none.
 */
int luo_memfd_move(struct file *file, u64 index, u64 last)
{
	struct folio *folios[LUO_FOUND_MAX];
	pgoff_t offset;
	long pinned;

	pinned = memfd_pin_folios(file, (loff_t)index << PAGE_SHIFT, (loff_t)last << PAGE_SHIFT,
				  folios, LUO_FOUND_MAX, &offset);
	if (pinned < 0)
		return pinned;
	unpin_folios(folios, pinned);
	return 0;
}

/* folio_put() is a static inline. */
void luo_frames_put(u64 pfn, u64 pages, u8 order)
{
	u64 end = pfn + pages;

	for (; pfn < end; pfn += 1UL << order) {
		folio_put(pfn_folio(pfn));
		cond_resched();
	}
}

/* As shmem does on the first fault, whoever comes first; all of it static inlines. */
void luo_frames_write_zeros(u64 pfn)
{
	struct folio *folio = pfn_folio(pfn);

	folio_lock(folio);
	if (!folio_test_uptodate(folio)) {
		folio_zero_range(folio, 0, folio_size(folio));
		flush_dcache_folio(folio);
		folio_mark_uptodate(folio);
	}
	folio_unlock(folio);
}

/*
 * The pages of one preservation. The next kernel reserves them early in its boot, order
 * by order, and each costs it the longer, the more pieces there are already: so single
 * pages, which it joins as they come, and of what is larger only the largest.
 */
static u64 piece(u64 pfn, u64 end, u8 order)
{
	if (order)
		return 1ULL << order;
	if (IS_ALIGNED(pfn, PTRS_PER_PTE) && end - pfn >= PTRS_PER_PTE)
		return PTRS_PER_PTE;
	return 1;
}

/* pfn_to_page() and pfn_folio() are macros. */
int luo_frames_preserve(u64 pfn, u64 pages, u8 order)
{
	u64 first = pfn, end = pfn + pages, size;
	int err;

	for (; pfn < end; pfn += size) {
		size = piece(pfn, end, order);
		err = order ? kho_preserve_folio(pfn_folio(pfn)) :
			      kho_preserve_pages(pfn_to_page(pfn), size);
		if (err) {
			luo_frames_unpreserve(first, pfn - first, order);
			return err;
		}
	}
	return 0;
}

/* As above, and in the same pieces. */
void luo_frames_unpreserve(u64 pfn, u64 pages, u8 order)
{
	u64 end = pfn + pages, size;

	for (; pfn < end; pfn += size) {
		size = piece(pfn, end, order);
		if (order)
			kho_unpreserve_folio(pfn_folio(pfn));
		else
			kho_unpreserve_pages(pfn_to_page(pfn), size);
	}
}

/*
 * Takes one preservation back that begins at @pfn and has at most @pages: as a
 * folio if @order says so and this kernel has large ones, as single pages otherwise.
 * Answers their number, 0 if there is none.
 */
static u64 take_back(u64 pfn, u64 pages, u8 order)
{
	bool large = order && IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE);
	int kept;

	guard(mutex)(&luo_incoming);
	kept = luo_kept_order(pfn);
	if (kept < 0 || 1ULL << kept > pages || (order && kept != order))
		return 0;
	if (large ? !kho_restore_folio(PFN_PHYS(pfn)) :
		    !kho_restore_pages(PFN_PHYS(pfn), 1UL << kept))
		return 0;
	return 1ULL << kept;
}

/* Order of the folios that take_back() makes. */
static u8 order_here(u8 order)
{
	return IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) ? order : 0;
}

/* kho_restore_*() and folio_put() of what nobody takes; skips what is not there. */
void luo_frames_discard(u64 pfn, u64 pages, u8 order)
{
	u64 end = pfn + pages;

	while (pfn < end) {
		u64 taken = take_back(pfn, end - pfn, order);

		if (taken)
			luo_frames_put(pfn, taken, order_here(order));
		pfn += taken ? : 1UL << order;
	}
}

/* memfd_alloc_file() is internal, and so are the fields of what it makes. */
struct file *luo_memfd_create(const struct luo_memfd_attributes *attributes)
{
	struct file *file = memfd_alloc_file("", MFD_ALLOW_SEALING);
	struct inode *inode;
	int err;

	if (IS_ERR(file))
		return file;
	inode = file_inode(file);
	/* The exec seal may imply others, depending on the mode. */
	inode->i_mode = (inode->i_mode & ~07777) | attributes->mode;
	/* Adding a seal waits for pages that others hold: there are none yet. */
	err = memfd_add_seals(file, attributes->seals);
	if (!err && memfd_get_seals(file) != attributes->seals)
		err = -EINVAL;
	if (err)
		goto err_put;
	i_size_write(inode, attributes->size);

	if ((attributes->flags & O_ACCMODE) != O_RDWR) {
		struct file *other = dentry_open(&file->f_path,
						 (attributes->flags & O_ACCMODE) | O_LARGEFILE,
						 current_cred());

		if (IS_ERR(other)) {
			err = PTR_ERR(other);
			goto err_put;
		}
		fput(file);
		file = other;
	}
	file->f_flags = (file->f_flags & ~KEPT_FLAGS) | (attributes->flags & KEPT_FLAGS);
	file->f_iocb_flags = iocb_flags(file);
	err = vfs_setpos(file, attributes->position, MAX_LFS_FILESIZE) < 0 ? -EINVAL : 0;
	if (err)
		goto err_put;
	return file;

err_put:
	fput(file);
	return ERR_PTR(err);
}

/* Single pages at consecutive places of a file, on their way into its page cache. */
struct insertion {
	struct address_space *mapping;
	long accounted;
	pgoff_t index;
	unsigned int count;
	struct folio *folios[64];
};

/*
 * Not for all pages of a file at once: the kernel refuses more than it has, and
 * what was preserved counts only once it is taken back.
 */
static int account(struct insertion *insertion, long pages)
{
	int err = shmem_inode_acct_blocks(insertion->mapping->host, pages);

	if (!err)
		insertion->accounted += pages;
	return err;
}

/* Puts one large folio into the page cache, which takes over our reference, or drops it. */
static int insert_large(struct insertion *insertion, struct folio *folio, pgoff_t index)
{
	struct address_space *mapping = insertion->mapping;
	gfp_t gfp = mapping_gfp_mask(mapping);
	int err;

	__folio_set_locked(folio);
	__folio_set_swapbacked(folio);
	err = account(insertion, folio_nr_pages(folio));
	if (!err)
		err = mem_cgroup_charge(folio, NULL, gfp);
	if (!err)
		err = shmem_add_to_page_cache(folio, mapping, index, NULL, gfp);
	if (!err) {
		folio_mark_uptodate(folio);
		/* A clean page can be reclaimed, and would be lost. */
		folio_mark_dirty(folio);
		folio_add_lru(folio);
	}
	folio_unlock(folio);
	folio_put(folio);
	return err;
}

static bool same_lruvec(struct folio *folio, struct folio *other)
{
#ifdef CONFIG_MEMCG
	if (folio->memcg_data != other->memcg_data)
		return false;
#endif
	return folio_pgdat(folio) == folio_pgdat(other);
}

/* What shmem_update_stats() and folio_add_lru() do, once for all that have it in common. */
static void publish(struct folio **folios, unsigned int count)
{
	while (count) {
		unsigned int i, same = 1;
		struct lruvec *lruvec;

		while (same < count && same_lruvec(folios[0], folios[same]))
			same++;
		lruvec_stat_mod_folio(folios[0], NR_FILE_PAGES, same);
		lruvec_stat_mod_folio(folios[0], NR_SHMEM, same);
		lruvec = folio_lruvec_lock_irq(folios[0]);
		for (i = 0; i < same; i++) {
			folio_set_lru(folios[i]);
			lruvec_add_folio(lruvec, folios[i]);
		}
		lruvec_unlock_irq(lruvec);
		folios += same;
		count -= same;
	}
}

/* As shmem_add_to_page_cache(), for all of them under one lock. Answers how many went in. */
static unsigned int store(struct insertion *insertion)
{
	struct address_space *mapping = insertion->mapping;
	XA_STATE(xas, &mapping->i_pages, insertion->index);
	unsigned int stored = 0;

	do {
		unsigned int before = stored;

		xas_lock_irq(&xas);
		while (stored < insertion->count) {
			xas_store(&xas, insertion->folios[stored]);
			if (xas_error(&xas))
				break;
			stored++;
			xas_next(&xas);
		}
		mapping->nrpages += stored - before;
		xas_unlock_irq(&xas);
	} while (xas_nomem(&xas, mapping_gfp_mask(mapping) & GFP_RECLAIM_MASK));
	return stored;
}

/*
 * Nobody knows of these folios yet, so there is no need for their lock, nor for
 * atomic flags. A clean page can be reclaimed, and would be lost: hence dirty.
 */
static int ready(struct insertion *insertion)
{
	gfp_t gfp = mapping_gfp_mask(insertion->mapping);
	unsigned int i;
	int err;

	err = account(insertion, insertion->count);
	if (err)
		return err;
	for (i = 0; i < insertion->count; i++) {
		struct folio *folio = insertion->folios[i];

		err = mem_cgroup_charge(folio, NULL, gfp);
		if (err)
			return err;
		folio->mapping = insertion->mapping;
		folio->index = insertion->index + i;
		folio->flags.f |= BIT(PG_swapbacked) | BIT(PG_uptodate) | BIT(PG_dirty);
	}
	/* The contents come before whoever finds the page up to date. */
	smp_wmb();
	return 0;
}

static void give_back(struct folio *folio)
{
	folio->mapping = NULL;
	folio->flags.f &= ~(BIT(PG_swapbacked) | BIT(PG_uptodate) | BIT(PG_dirty));
	folio_put(folio);
}

/* Inserts what was collected; what does not go in is given back. */
static int flush(struct insertion *insertion)
{
	unsigned int i, stored = 0;
	int err;

	if (!insertion->count)
		return 0;
	err = ready(insertion);
	if (!err) {
		stored = store(insertion);
		publish(insertion->folios, stored);
		err = stored < insertion->count ? -ENOMEM : 0;
	}
	for (i = stored; i < insertion->count; i++)
		give_back(insertion->folios[i]);
	insertion->count = 0;
	cond_resched();
	return err;
}

static int insert_single(struct insertion *insertion, struct folio *folio, pgoff_t index)
{
	int err = 0;

	if (insertion->count == ARRAY_SIZE(insertion->folios) ||
	    index != insertion->index + insertion->count)
		err = flush(insertion);
	if (err) {
		folio_put(folio);
		return err;
	}
	if (!insertion->count)
		insertion->index = index;
	insertion->folios[insertion->count++] = folio;
	return 0;
}

static int insert_run(struct insertion *insertion, const struct luo_run *run)
{
	u64 pfn = run->pfn, end = pfn + run->pages, index = run->index, taken, last;
	u8 here = order_here(run->order);
	int err = 0;

	while (pfn < end) {
		taken = take_back(pfn, end - pfn, run->order);
		if (!taken)
			return -EINVAL;
		for (last = pfn + taken; pfn < last && !err; pfn += 1UL << here) {
			if (here)
				err = insert_large(insertion, pfn_folio(pfn), index);
			else
				err = insert_single(insertion, pfn_folio(pfn), index);
			index += 1UL << here;
		}
		if (err) {
			luo_frames_put(pfn, last - pfn, here);
			return err;
		}
	}
	return 0;
}

/* The page cache, the LRU and their counters are internal to mm. */
int luo_memfd_insert(struct file *file, const struct luo_run *runs, u32 count)
{
	struct insertion insertion = { .mapping = file->f_mapping };
	int err = 0, flushed;
	u32 i;

	for (i = 0; i < count && !err; i++)
		err = insert_run(&insertion, &runs[i]);
	flushed = flush(&insertion);
	/* Gives back what was accounted and did not go in. */
	shmem_recalc_inode(file_inode(file), insertion.accounted, 0);
	return err ? : flushed;
}
