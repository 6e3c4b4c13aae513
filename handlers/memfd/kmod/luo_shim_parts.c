// SPDX-License-Identifier: GPL-2.0-only
/*
 * Large files by several processors, in parts: workqueues, their macros and cgroups have no
 * binding. The task that was called decodes or writes the record meanwhile. It never waits for
 * a worker that has not begun, but does that part itself: so it goes on whether or not a worker
 * ever runs.
 */
#include <linux/cpumask.h>
#include <linux/fs.h>
#include <linux/math64.h>
#include <linux/memcontrol.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "luo_shim.h"
#include "luo_shim_memfd.h"

/*
 * A part is about a millisecond of work, after which a task that was killed gives up: so many
 * single pages at most, or large folios with sixteen times as many.
 */
#define PART_WORK 4096ULL
#define PART_RUNS 2048

/*
 * Smaller files are not worth the wait for workers: the code is new to a processor that has just
 * booted.
 */
#define PARTS_MIN 4
#define PAGES_MIN (PARTS_MIN * PART_WORK)

/* Each has 64 KiB of runs, or 96 KiB of what was found. */
#define PARTS_MAX 16

static const gfp_t part_gfp = GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN;

static struct workqueue_struct *workers;

static int __init make_workers(void)
{
	workers = alloc_workqueue("luo_memfd", WQ_PERCPU | WQ_CPU_INTENSIVE, 0);
	return workers ? 0 : -ENOMEM;
}
late_initcall(make_workers);

/*
 * Queues work where the task may run, and is not running now: on the next processor after @last,
 * where work was queued last. A worker that may run anywhere is woken where the task is at work,
 * and moved too late.
 */
static void queue_elsewhere(struct work_struct *work, int *last)
{
	int own = raw_smp_processor_id(), cpu = *last, tries;

	for (tries = 0; tries < 3; tries++) {
		cpu = cpumask_next_and(cpu, current->cpus_ptr, cpu_online_mask);
		if (cpu >= nr_cpu_ids) {
			cpu = -1;
		} else if (cpu != own) {
			*last = cpu;
			queue_work_on(cpu, workers, work);
			return;
		}
	}
	queue_work(workers, work);
}

/*
 * How many parts at once, where @pages are worth it: 0 otherwise. @per_processor for each other one
 * that the task may run on: the next part is to be there when one is done.
 */
static unsigned int parts_for(u64 pages, unsigned int per_processor)
{
	unsigned int processors = cpumask_weight_and(current->cpus_ptr, cpu_online_mask);

	if (!workers || processors < 2 || pages < PAGES_MIN)
		return 0;
	return min(per_processor * (processors - 1), PARTS_MAX);
}

struct luo_part {
	struct luo_parts *all;
	struct work_struct work;
	/* Whether a worker has it. */
	bool busy;
	/* With the number that all have; @unused is what this part adds to or takes from it. */
	struct luo_claim claim;
	u64 pages;
	u64 work_size;
	u32 count;
	struct luo_run *runs;
};

struct luo_parts {
	struct file *file;
	struct mem_cgroup *memcg;
	/* Of the part that failed first: no other one begins after that. */
	int err;
	/* What is left of the file, and what is done. */
	u64 pages_left;
	u64 pages_done;
	u64 work_done;
	int last_cpu;
	/* What is being filled. The first part is the task's own, and never given to a worker. */
	struct luo_part *part;
	/* How many parts are in use: one, until there turns out to be enough work for others. */
	unsigned int used;
	unsigned int count;
	struct luo_part parts[] __counted_by(count);
};

static void insert_part(struct luo_part *part)
{
	struct luo_parts *all = part->all;
	int err = READ_ONCE(all->err);

	if (!err)
		err = luo_memfd_insert(all->file, &part->claim, part->runs, part->count);
	if (err)
		cmpxchg(&all->err, 0, err);
	part->pages = 0;
	part->work_size = 0;
	part->count = 0;
}

/* What a worker takes is charged as if the task took it. */
static void insert_in_worker(struct work_struct *work)
{
	struct luo_part *part = container_of(work, struct luo_part, work);
	struct mem_cgroup *before = set_active_memcg(part->all->memcg);

	insert_part(part);
	set_active_memcg(before);
	/* The task fills the part again: see next_part(). */
	smp_store_release(&part->busy, false);
}

static void free_parts(struct luo_parts *all)
{
	unsigned int i;

	for (i = 0; i < all->count; i++)
		kvfree(all->parts[i].runs);
	mem_cgroup_put(all->memcg);
	kvfree(all);
}

static bool make_room(struct luo_part *part)
{
	part->runs = kvmalloc_array(PART_RUNS, sizeof(*part->runs), part_gfp);
	return part->runs;
}

/*
 * Begins to insert a file of that many pages; NULL if it is better done, or can only be done, by
 * the running task alone.
 */
struct luo_parts *luo_parts_begin(struct file *file, const struct luo_claim *claim, u64 pages)
{
	unsigned int others = parts_for(pages, 2), i;
	struct luo_parts *all;

	if (!others || (luo_hugetlb_shift(file) && !luo_hugetlb_in_parts()))
		return NULL;
	all = kvzalloc(struct_size(all, parts, 1 + others), part_gfp);
	if (!all)
		return NULL;
	all->file = file;
	all->count = 1 + others;
	all->used = 1;
	all->pages_left = pages;
	all->memcg = get_mem_cgroup_from_mm(NULL);
	for (i = 0; i < all->count; i++) {
		struct luo_part *part = &all->parts[i];

		part->all = all;
		part->claim.number = claim->number;
		INIT_WORK(&part->work, insert_in_worker);
	}
	if (!make_room(&all->parts[0])) {
		free_parts(all);
		return NULL;
	}
	return all;
}

/*
 * After a part that the task did itself, with @work. If the rest of the file is like what is
 * done, is it enough for others? A file in huge pages is less work than its size, and gigantic
 * ones are parts too large to wait for the last of a few.
 */
static void use_workers(struct luo_parts *all, u64 work)
{
	u64 work_left = mul_u64_u64_div_u64(all->pages_left, all->work_done, all->pages_done);

	if (work_left < PARTS_MIN * max(work, PART_WORK))
		return;
	while (all->used < all->count && make_room(&all->parts[all->used]))
		all->used++;
}

/* One that no worker has, if there is one the task need not insert itself. */
static struct luo_part *next_part(struct luo_parts *all)
{
	unsigned int i;

	for (i = 1; i < all->used; i++) {
		/* What insert_in_worker() did to it comes before that. */
		if (!smp_load_acquire(&all->parts[i].busy))
			return &all->parts[i];
	}
	return &all->parts[0];
}

static void insert_or_queue(struct luo_parts *all)
{
	struct luo_part *part = all->part;

	all->part = NULL;
	all->pages_left -= min(all->pages_left, part->pages);
	if (part == &all->parts[0]) {
		u64 work = part->work_size;

		all->pages_done += part->pages;
		all->work_done += work;
		insert_part(part);
		if (all->used == 1)
			use_workers(all, work);
	} else {
		part->busy = true;
		queue_elsewhere(&part->work, &all->last_cpu);
	}
}

static u64 work_of_folio(u8 order)
{
	return max(1ULL << order >> 4, 1ULL);
}

/* How many of the first pages of a run, in whole folios, go into a part. */
static u64 fitting(const struct luo_part *part, const struct luo_run *run)
{
	u64 work = work_of_folio(run->order), folios = 0;

	if (part->count < PART_RUNS && part->work_size < PART_WORK)
		folios = (PART_WORK - part->work_size) / work;
	/* A folio may be larger than a part should be. */
	if (!part->count)
		folios = max(folios, 1ULL);
	return min(run->pages, folios << run->order);
}

/* As luo_memfd_insert(), but some of the runs may go in later. */
int luo_parts_insert(struct luo_parts *all, const struct luo_run *runs, u32 count)
{
	struct luo_run run;
	u32 i;

	for (i = 0; i < count; i++) {
		for (run = runs[i]; run.pages; ) {
			struct luo_part *part = all->part ? : next_part(all);
			u64 pages = fitting(part, &run);

			all->part = part;
			if (!pages) {
				insert_or_queue(all);
				continue;
			}
			part->runs[part->count] = run;
			part->runs[part->count++].pages = pages;
			part->pages += pages;
			part->work_size += work_of_folio(run.order) * (pages >> run.order);
			run.index += pages;
			run.pfn += pages;
			run.pages -= pages;
		}
	}
	return READ_ONCE(all->err) ? : luo_pause();
}

/*
 * Waits until all parts are in, or, after @err or an error of one of them, until no processor is
 * at one any more. Then @claim has what none of them asked for.
 */
int luo_parts_end(struct luo_parts *all, struct luo_claim *claim, int err)
{
	unsigned int i;

	if (err)
		cmpxchg(&all->err, 0, err);
	if (all->part)
		insert_part(all->part);
	for (i = 0; i < all->count; i++) {
		struct luo_part *part = &all->parts[i];

		/* Rather than wait for a worker that has not begun. */
		if (cancel_work(&part->work))
			insert_part(part);
		else
			flush_work(&part->work);
		claim->unused += part->claim.unused;
	}
	err = all->err;
	free_parts(all);
	return err;
}

/* Folios lie in one part only, whatever their order. */
#define SCAN_PAGES max(1UL << (24 - PAGE_SHIFT), 1UL << MAX_PAGECACHE_ORDER)

struct luo_scan_part {
	struct luo_scan *all;
	struct work_struct work;
	u64 first;
	u64 last;
	/* What was found, and not yet taken over by who asked for it. */
	u32 count;
	struct luo_found *found;
};

/* A walk over the page cache of a file, in which workers go ahead. */
struct luo_scan {
	struct file *file;
	/* What no part has got yet. */
	u64 first;
	u64 last;
	/* Whose turn it is. */
	unsigned int turn;
	int last_cpu;
	unsigned int count;
	struct luo_scan_part parts[] __counted_by(count);
};

static void scan_part(struct luo_scan_part *part)
{
	u64 next = part->first;
	u32 found;

	/* There is room for one of each page. */
	while (next <= part->last) {
		found = luo_memfd_find(part->all->file, &next, part->last,
				       part->found + part->count, SCAN_PAGES - part->count);
		if (!found)
			break;
		part->count += found;
		cond_resched();
	}
}

static void scan_in_worker(struct work_struct *work)
{
	scan_part(container_of(work, struct luo_scan_part, work));
}

/* Gives a part the next pages, if there are any. */
static void scan_on(struct luo_scan *all, struct luo_scan_part *part)
{
	part->first = all->first;
	part->last = min(all->last, round_down(all->first, SCAN_PAGES) + SCAN_PAGES - 1);
	if (part->first > part->last)
		return;
	all->first = part->last + 1;
	queue_elsewhere(&part->work, &all->last_cpu);
}

/*
 * Waits until a part is looked at. Rather than wait for a worker that has not begun, or while it is
 * at it, the task looks at a part itself: the last that no worker has.
 */
static void complete_part(struct luo_scan *all, struct luo_scan_part *part)
{
	unsigned int turn = all->turn + all->count - 1;

	if (cancel_work(&part->work)) {
		scan_part(part);
		return;
	}
	while (work_busy(&part->work) && turn > all->turn) {
		struct luo_scan_part *other = &all->parts[--turn % all->count];

		if (cancel_work(&other->work))
			scan_part(other);
	}
	flush_work(&part->work);
}

static void free_scan(struct luo_scan *all)
{
	unsigned int i;

	for (i = 0; i < all->count; i++)
		kvfree(all->parts[i].found);
	kvfree(all);
}

/*
 * Begins to look for the pages from @first to @last, most of them single; NULL if the running task
 * should do that, or has to. Where most of the file is a hole, there is too little to find in a
 * part.
 */
struct luo_scan *luo_scan_begin(struct file *file, u64 first, u64 last)
{
	u64 range = last - first + 1, pages = READ_ONCE(file->f_mapping->nrpages);
	/* One that is looked at, one that is next, and one for the task: see complete_part(). */
	unsigned int count = parts_for(min(range, pages), 3), i;
	struct luo_scan *all;

	if (!count || pages < range / 4)
		return NULL;
	all = kvzalloc(struct_size(all, parts, count), part_gfp);
	if (!all)
		return NULL;
	all->file = file;
	all->first = first;
	all->last = last;
	all->count = count;
	for (i = 0; i < count; i++) {
		struct luo_scan_part *part = &all->parts[i];

		part->all = all;
		INIT_WORK(&part->work, scan_in_worker);
		part->found = kvmalloc_array(SCAN_PAGES, sizeof(*part->found), part_gfp);
		if (!part->found) {
			free_scan(all);
			return NULL;
		}
	}
	for (i = 0; i < count; i++)
		scan_on(all, &all->parts[i]);
	return all;
}

/*
 * The next that luo_memfd_find() has found, up to and without @next; 0 if there is no more. It is
 * there until the next call, and whoever calls owns its pins.
 */
u32 luo_scan_next(struct luo_scan *all, u64 *next, struct luo_found **found)
{
	struct luo_scan_part *part;
	u32 count;

	do {
		/* Nobody needs any more what it found before. */
		if (all->turn)
			scan_on(all, &all->parts[(all->turn - 1) % all->count]);
		part = &all->parts[all->turn++ % all->count];
		*next = part->last + 1;
		if (part->first > part->last)
			return 0;
		complete_part(all, part);
		*found = part->found;
		count = part->count;
		part->count = 0;
	} while (!count);
	return count;
}

/* Gives back what nobody took over. */
void luo_scan_end(struct luo_scan *all)
{
	unsigned int i;
	u32 j;

	for (i = 0; i < all->count; i++) {
		struct luo_scan_part *part = &all->parts[i];

		if (!cancel_work(&part->work))
			flush_work(&part->work);
		for (j = 0; j < part->count; j++) {
			struct luo_found *found = &part->found[j];

			if (found->state <= LUO_FOUND_UNWRITTEN)
				luo_frames_unpin(found->pfn, found->pages, found->order);
		}
	}
	free_scan(all);
}
