/* SPDX-License-Identifier: GPL-2.0-only */
/* What the memfd handler asks of C; the Rust side is in its kernel.rs. */
#ifndef _LUO_SHIM_MEMFD_H
#define _LUO_SHIM_MEMFD_H

#include <linux/types.h>

struct file;
struct folio;

/* The longest name that memfd_create() takes has room, with zeros after it. */
#define LUO_MEMFD_NAME_ROOM 256

/* What makes a memfd besides its contents; the flags and seals are the uapi's. */
struct luo_memfd_attributes {
	u64 size;
	u64 position;
	u32 seals;
	u32 flags;
	u32 mode;
	u32 uid;
	u32 gid;
	u32 huge_shift;		/* of the size of its own pages, 0 for base pages */
	char name[LUO_MEMFD_NAME_ROOM];
};

/* What is found in a page cache: a folio, or several single pages in a row. */
struct luo_found {
	u64 index;
	u64 pfn;
	u32 pages;
	u8 order;
	u8 state;
};

/* A run of folios of one order, in consecutive frames at consecutive places. */
struct luo_run {
	u64 index;
	u64 pfn;
	u64 pages;
	u8 order;
};

enum luo_found_state {
	LUO_FOUND_HELD,		/* a folio, which the finder has pinned */
	LUO_FOUND_UNWRITTEN,	/* the same, but allocated and never written */
	LUO_FOUND_MOVABLE,	/* the same, but where it cannot stay */
	LUO_FOUND_SWAPPED,	/* swapped out */
	LUO_FOUND_GONE,		/* was on its way out; look again */
	LUO_FOUND_POISONED,	/* memory that fails */
};

#define LUO_FOUND_MAX 128

/* Folios after which a walk lets others run. */
#define LUO_FOUND_STEPS_MAX 2048

/* Frames of a block; in pieces.rs as well. What is held is preserved block by block. */
#define LUO_BLOCK_FRAMES 512

/*
 * The pieces that one record has taken back. Each processor that takes parts of it has one, with
 * the same number.
 */
struct luo_claim {
	u64 number;
	u64 unused;		/* pages of them not asked for yet; if several, a difference */
};

bool luo_memfd_is_known(struct file *file);
unsigned long luo_memfd_id(struct file *file);
bool luo_memfd_is_memfd(struct file *file);
void luo_memfd_name(struct file *file, char name[LUO_MEMFD_NAME_ROOM]);
void luo_memfd_fix_size(struct file *file, bool fix);
u64 luo_memfd_hold_holes(struct file *file);
void luo_memfd_release_holes(struct file *file);
int luo_pause(void);
u64 luo_frame_end(void);
int luo_memfd_attributes(struct file *file, struct luo_memfd_attributes *attributes);
u32 luo_memfd_find(struct file *file, u64 *start, u64 last, struct luo_found *found, u32 room);
int luo_memfd_swap_in(struct file *file, u64 index);
int luo_memfd_move(struct file *file, u64 index, u64 last);
void luo_frames_unpin(u64 pfn, u64 pages, u8 order);
u64 luo_frames_sound(u64 pfn, u64 pages, u8 order);
u64 luo_poisoned_pages(void);
void luo_frames_write_zeros(u64 pfn);
bool luo_memfd_writes_mainlines(void);
void luo_memfd_owner(u32 *uid, u32 *gid);
u64 luo_frames_index(u64 pfn);
int luo_memfd_has_room(u64 pages);
struct file *luo_memfd_create(const struct luo_memfd_attributes *attributes);
int luo_memfd_insert(struct file *file, struct luo_claim *claim, const struct luo_run *runs,
		     u32 count);

/* luo_shim_pieces.c */
int luo_frames_preserve(u64 pfn, u64 pages, u8 order, bool folio_by_folio);
void luo_frames_unpreserve(u64 pfn, u64 pages, u8 order, bool folio_by_folio);
void luo_frames_discard(struct luo_claim *claim, u64 pfn, u64 pages, u8 order);
void luo_frames_put(u64 pfn, u64 pages, u8 order);
u64 luo_take_back(struct luo_claim *claim, u64 pfn, u64 pages, u8 order);
u8 luo_order_here(u8 order);
struct folio *luo_folio_take_back(u64 pfn, unsigned int order);
void luo_folios_manage(u64 pfn, unsigned int order, unsigned int folios);
void luo_claim_begin(struct luo_claim *claim);
void luo_claim_end(struct luo_claim *claim, u64 pfn, u64 pages);

/* luo_shim_parts.c */
struct luo_parts *luo_parts_begin(struct file *file, const struct luo_claim *claim, u64 pages);
int luo_parts_insert(struct luo_parts *parts, const struct luo_run *runs, u32 count);
int luo_parts_end(struct luo_parts *parts, struct luo_claim *claim, int err);
struct luo_scan *luo_scan_begin(struct file *file, u64 first, u64 last);
u32 luo_scan_next(struct luo_scan *scan, u64 *next, struct luo_found **found);
void luo_scan_end(struct luo_scan *scan);

/* luo_shim_hugetlb.c */
u32 luo_hugetlb_shift(struct file *file);
void luo_hugetlb_fix_size(struct file *file, bool fix);
u64 luo_hugetlb_hold_holes(struct file *file);
void luo_hugetlb_release_holes(struct file *file);
bool luo_hugetlb_can_stay(struct folio *folio);
int luo_hugetlb_has_room(u32 shift, u64 pages);
bool luo_hugetlb_in_parts(void);
int luo_hugetlb_insert(struct file *file, const struct luo_run *runs, u32 count);

#endif /* _LUO_SHIM_MEMFD_H */
