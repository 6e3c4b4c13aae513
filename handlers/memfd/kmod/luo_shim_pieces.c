// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that crosses, in the pieces that KHO preserves: 2^n aligned pages. Each function's
 * comment begins with why it is in C. What to do with all this is decided in Rust.
 *
 * Single pages of a file are preserved as they lie in memory, in pieces as large as fit. Who
 * retrieves asks for them in the order of the file. So a piece is taken back whole when the first
 * of its pages is asked for. The others are marked in page->private, which nobody else uses while
 * they are ours: with the number of the claim, so that they are for one record alone. Several
 * processors may take back parts of one record: whoever clears a mark has the page.
 */
#include <linux/atomic.h>
#include <linux/kexec_handover.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/pgalloc_tag.h>
#include <linux/pgtable.h>
#include <linux/sched.h>

#include "../../mm/internal.h"
#include "luo_shim.h"
#include "luo_shim_memfd.h"

/* As in kernel.rs. */
static_assert(sizeof(struct luo_claim) == 16);

/* Pieces of single pages are no larger, in records of every layout. */
#define PIECE_ORDER_MAX (PMD_SHIFT - PAGE_SHIFT)

#define CLAIM_MAGIC 0x4c554f43UL /* ASCII for 'LUOC' */

/* The end of the piece of a run that begins at @pfn. Mainline's format wants each folio alone. */
static u64 piece_end(u64 pfn, u64 end, u8 order, bool folio_by_folio)
{
	if (order || folio_by_folio)
		return pfn + (1ULL << order);
	return min(end, round_down(pfn, LUO_BLOCK_FRAMES) + LUO_BLOCK_FRAMES);
}

/*
 * pfn_to_page() and pfn_folio() are macros. Of single pages kho_preserve_pages() makes the
 * largest aligned pieces. The next kernel reserves them early in its boot, order by order from
 * the largest on, and each costs it the longer, the more ranges there are already. Each piece of
 * a run joins larger ones that are there before it: so a run is one range at any time.
 */
int luo_frames_preserve(u64 pfn, u64 pages, u8 order, bool folio_by_folio)
{
	u64 first = pfn, end = pfn + pages, next;
	int err;

	for (; pfn < end; pfn = next) {
		cond_resched();
		next = piece_end(pfn, end, order, folio_by_folio);
		err = order ? kho_preserve_folio(pfn_folio(pfn)) :
			      kho_preserve_pages(pfn_to_page(pfn), next - pfn);
		if (err) {
			luo_frames_unpreserve(first, pfn - first, order, folio_by_folio);
			return err;
		}
	}
	return 0;
}

/* As above, and in the same pieces. */
void luo_frames_unpreserve(u64 pfn, u64 pages, u8 order, bool folio_by_folio)
{
	u64 end = pfn + pages, next;

	for (; pfn < end; pfn = next) {
		cond_resched();
		next = piece_end(pfn, end, order, folio_by_folio);
		if (order)
			kho_unpreserve_folio(pfn_folio(pfn));
		else
			kho_unpreserve_pages(pfn_to_page(pfn), next - pfn);
	}
}

/* Atomic counters. */
void luo_claim_begin(struct luo_claim *claim)
{
	static atomic_t last = ATOMIC_INIT(0);

	*claim = (struct luo_claim) { .number = (u32)atomic_inc_return(&last) };
}

static unsigned long mark_of(const struct luo_claim *claim)
{
	return CLAIM_MAGIC << 32 | claim->number;
}

/*
 * adjust_managed_page_count() of what was taken back; it computes reserves of all zones, and by
 * several processors at once computes them wrong.
 */
static void manage(struct page *first, unsigned long pages)
{
	static DEFINE_MUTEX(lock);

	guard(mutex)(&lock);
	adjust_managed_page_count(first, pages);
}

/* As kho_restore_pages(), all but manage(). */
static void restore_pages(struct page *first, unsigned int order, unsigned long mark)
{
	struct page *page;

	for (page = first; page < first + (1UL << order); page++) {
		set_page_count(page, 1);
		clear_page_tag_ref(page);
		/* Who finds the mark, without the lock, finds a page that is restored. */
		smp_store_release(&page->private, mark);
	}
}

/*
 * The largest piece that holds @pfn and that nobody has taken back. The largest one first: so of
 * pieces that a hostile kernel has laid into each other none is found but the outermost.
 */
static int find_piece(u64 pfn, u64 *first)
{
	int order = PIECE_ORDER_MAX, found;

	for (; order >= 0; order--) {
		*first = round_down(pfn, 1ULL << order);
		found = luo_preserved_order(*first);
		if (found >= 0 && *first + (1ULL << found) > pfn)
			return found;
	}
	return -ENOENT;
}

/* Whether a piece has no other one in it, of which somebody may have pages. */
static bool is_whole(const struct page *page, unsigned int order)
{
	unsigned long i;

	for (i = 1; i < 1UL << order; i++)
		if (page_private(page + i))
			return false;
	return true;
}

/*
 * Of what is marked, as many as follow each other up to @max: they are no longer ours. A record
 * may name a page twice, in parts that two processors are at.
 */
static u64 use_marked(struct luo_claim *claim, struct page *page, u64 max)
{
	unsigned long mark = mark_of(claim);
	u64 used;

	for (used = 0; used < max; used++)
		if (cmpxchg(&page[used].private, mark, 0) != mark)
			break;
	claim->unused -= used;
	return used;
}

/* Takes back up to @pages single pages from @pfn on; returns how many, 0 if there are none. */
static u64 take_pages(struct luo_claim *claim, u64 pfn, u64 pages)
{
	u64 max = piece_end(pfn, pfn + pages, 0, false) - pfn, first;
	struct page *page = pfn_to_online_page(pfn);
	int order;

	if (!page)
		return 0;
	if (page_private(page) == mark_of(claim))
		return use_marked(claim, page, max);

	guard(mutex)(luo_incoming(pfn));
	/* Another processor may have been here meanwhile. */
	if (page_private(page) == mark_of(claim))
		return use_marked(claim, page, max);
	order = find_piece(pfn, &first);
	if (order < 0 || order > PIECE_ORDER_MAX || !is_whole(pfn_to_page(first), order))
		return 0;
	manage(pfn_to_page(first), 1UL << order);
	if (first == pfn && 1ULL << order <= pages) {
		restore_pages(page, order, 0);
		return 1ULL << order;
	}
	restore_pages(pfn_to_page(first), order, mark_of(claim));
	claim->unused += 1ULL << order;
	return use_marked(claim, page, min(max, first + (1ULL << order) - pfn));
}

/*
 * kho_restore_folio() writes each struct page twice, which is most of what a retrieve of large
 * folios costs. Makes a folio of what the previous kernel preserved at @pfn in this order, if
 * nobody has taken it: frozen, and to be counted by luo_folios_manage().
 */
struct folio *luo_folio_take_back(u64 pfn, unsigned int order)
{
	struct page *head, *page;

	scoped_guard(mutex, luo_incoming(pfn)) {
		if (luo_preserved_order(pfn) != order)
			return NULL;
		head = pfn_to_page(pfn);
		/* Nobody else takes it from here on. */
		set_page_private(head, 0);
	}
	set_page_count(head, 0);
	clear_page_tag_ref(head);
	__SetPageHead(head);
	for (page = head + 1; page < head + (1UL << order); page++) {
		set_page_count(page, 0);
		prep_compound_tail(page, head, order);
	}
	prep_compound_head(head, order);
	return page_folio(head);
}

/* manage() for @folios in a row, those of one zone at once. */
void luo_folios_manage(u64 pfn, unsigned int order, unsigned int folios)
{
	while (folios) {
		struct page *first = pfn_to_page(pfn);
		unsigned int same = 1;

		while (same < folios &&
		       page_zone(pfn_to_page(pfn + ((u64)same << order))) == page_zone(first))
			same++;
		manage(first, (unsigned long)same << order);
		pfn += (u64)same << order;
		folios -= same;
	}
}

/* Large folios that are taken back together; each is a preservation of its own. */
#define FOLIOS_AT_ONCE 64

/* The same as take_pages() with folios of @order. */
static u64 take_folios(u64 pfn, u64 pages, u8 order)
{
	unsigned int count = min(pages >> order, FOLIOS_AT_ONCE), taken;

	for (taken = 0; taken < count; taken++) {
		struct folio *folio = luo_folio_take_back(pfn + ((u64)taken << order), order);

		if (!folio)
			break;
		folio_ref_unfreeze(folio, 1);
	}
	luo_folios_manage(pfn, order, taken);
	return (u64)taken << order;
}

/* The same where this kernel has no large folios for it. */
static u64 take_apart(u64 pfn, u64 pages, u8 order)
{
	guard(mutex)(luo_incoming(pfn));
	if (1ULL << order > pages || luo_preserved_order(pfn) != order)
		return 0;
	manage(pfn_to_page(pfn), 1UL << order);
	restore_pages(pfn_to_page(pfn), order, 0);
	return 1ULL << order;
}

/* IS_ENABLED() is a macro: order of the folios that luo_take_back() makes. */
u8 luo_order_here(u8 order)
{
	return IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) ? order : 0;
}

/*
 * struct page, which has no binding. Takes back what is preserved from @pfn on, @pages at most: as
 * folios of @order if this kernel has large ones, as single pages otherwise. Returns the number
 * of pages, 0 if nothing is preserved there.
 */
u64 luo_take_back(struct luo_claim *claim, u64 pfn, u64 pages, u8 order)
{
	if (!order)
		return take_pages(claim, pfn, pages);
	return luo_order_here(order) ? take_folios(pfn, pages, order) :
				       take_apart(pfn, pages, order);
}

/* folio_put() is a static inline. */
void luo_frames_put(u64 pfn, u64 pages, u8 order)
{
	u64 end = pfn + pages;

	for (; pfn < end; pfn += 1UL << order)
		folio_put(pfn_folio(pfn));
}

/* As above: frees what nobody takes, and skips what is not there. */
void luo_frames_discard(struct luo_claim *claim, u64 pfn, u64 pages, u8 order)
{
	u64 end = pfn + pages;

	while (pfn < end) {
		u64 taken = luo_take_back(claim, pfn, end - pfn, order);

		if (taken)
			luo_frames_put(pfn, taken, luo_order_here(order));
		pfn += taken ? : 1UL << order;
		cond_resched();
	}
}

/*
 * page->private. Frees what came with the pieces of these frames and was not asked for. Only
 * these blocks are looked at: pieces do not reach beyond them.
 */
void luo_claim_end(struct luo_claim *claim, u64 pfn, u64 pages)
{
	u64 end = round_up(pfn + pages, 1ULL << PIECE_ORDER_MAX);

	pfn = round_down(pfn, 1ULL << PIECE_ORDER_MAX);
	for (; pfn < end && claim->unused; pfn++) {
		struct page *page = pfn_to_online_page(pfn);

		if (!page || page_private(page) != mark_of(claim))
			continue;
		set_page_private(page, 0);
		claim->unused--;
		put_page(page);
		cond_resched();
	}
}
