// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the memfd handler needs and Rust cannot express: functions that are internal
 * to mm, static inlines, and loops over pages that are too hot for a call each. Each
 * function's comment begins with why it is here. What to do with all this is decided
 * in Rust.
 */
#include <linux/cred.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/hugetlb.h>
#include <linux/kho/abi/memfd.h>
#include <linux/memcontrol.h>
#include <linux/memfd.h>
#include <linux/memory_hotplug.h>
#include <linux/mm_inline.h>
#include <linux/moduleparam.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>
#include <linux/sysfs.h>
#include <linux/xarray.h>
#include <uapi/linux/memfd.h>

#include "../../mm/internal.h"
#include "luo_shim.h"
#include "luo_shim_memfd.h"

/* As in kernel.rs. */
static_assert(sizeof(struct luo_memfd_attributes) == 296);
static_assert(sizeof(struct luo_found) == 24);
static_assert(sizeof(struct luo_run) == 32);
/* As in mainline.rs. */
static_assert(sizeof(struct memfd_luo_ser) == 48);
static_assert(offsetof(struct memfd_luo_ser, nr_folios) == 24);
static_assert(offsetof(struct memfd_luo_ser, folios) == 32);
static_assert(sizeof(struct memfd_luo_folio_ser) == 16);
static_assert(offsetof(struct kho_vmalloc, total_pages) == 8);
static_assert(offsetof(struct kho_vmalloc, order) == 14);

/* The status flags that F_SETFL can change, and O_ACCMODE. */
#define PRESERVED_FLAGS (O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME)

/* The name of a memfd's dentry, before what was given to memfd_create(). */
#define NAME_PREFIX "memfd:"
#define NAME_PREFIX_LEN (sizeof(NAME_PREFIX) - 1)

#undef MODULE_PARAM_PREFIX
#define MODULE_PARAM_PREFIX "luo_handlers."

static const char *const formats[] = { "own", "mainline" };
static int format;

static int set_format(const char *value, const struct kernel_param *param)
{
	int found = sysfs_match_string(formats, value);

	if (found < 0)
		return found;
	WRITE_ONCE(format, found);
	return 0;
}

static int get_format(char *buffer, const struct kernel_param *param)
{
	return sysfs_emit(buffer, "%s\n", formats[READ_ONCE(format)]);
}

static const struct kernel_param_ops format_ops = { .set = set_format, .get = get_format };
module_param_cb(memfd_format, &format_ops, NULL, 0644);
MODULE_PARM_DESC(memfd_format, "Format of memfds that are preserved from now on: own, or mainline");

/* A parameter. */
bool luo_memfd_writes_mainlines(void)
{
	return READ_ONCE(format);
}

/* A macro: who owns what the running task makes. */
void luo_memfd_owner(u32 *uid, u32 *gid)
{
	*uid = from_kuid(&init_user_ns, current_fsuid());
	*gid = from_kgid(&init_user_ns, current_fsgid());
}

/* shmem_file() is a static inline; the rule is that of mm/memfd_luo.c. */
bool luo_memfd_is_known(struct file *file)
{
	return (shmem_file(file) || luo_hugetlb_shift(file)) && !file_inode(file)->i_nlink;
}

/*
 * Macros, and fields of structs without a binding. Only memfds come back as they are:
 * other files have a mount with limits and a huge page policy of its own, or belong to
 * SysV or a driver. On the kernel's own mount nobody else can choose a name.
 */
bool luo_memfd_is_memfd(struct file *file)
{
	const struct dentry *dentry = file->f_path.dentry;

	return luo_memfd_is_known(file) &&
	       file_inode(file)->i_sb->s_flags & SB_KERNMOUNT &&
	       str_has_prefix(dentry->d_name.name, NAME_PREFIX);
}

/* file_inode() is a static inline. */
unsigned long luo_memfd_id(struct file *file)
{
	return (unsigned long)file_inode(file);
}

/* struct dentry; on the kernel's own mount a name never changes. */
void luo_memfd_name(struct file *file, char name[LUO_MEMFD_NAME_ROOM])
{
	strscpy_pad(name, file->f_path.dentry->d_name.name + NAME_PREFIX_LEN, LUO_MEMFD_NAME_ROOM);
}

/*
 * Memory that was moved, because it lay where nothing can stay: it is what costs most.
 * In all, and for each file that is preserved, by the address of its struct file.
 */
static atomic64_t moved_bytes = ATOMIC64_INIT(0);
static DEFINE_XARRAY(moved_files);
static DEFINE_MUTEX(moved_files_lock);

static void count_moved(struct file *file, u64 pages)
{
	unsigned long key = (unsigned long)file;
	void *entry;

	atomic64_add(pages << PAGE_SHIFT, &moved_bytes);
	guard(mutex)(&moved_files_lock);
	entry = xa_load(&moved_files, key);
	if (entry)
		pages += xa_to_value(entry);
	/* Without memory for its own count a file is in the sum alone. */
	xa_store(&moved_files, key, xa_mk_value(pages), GFP_KERNEL);
}

/* shmem_freeze() and inode_lock() are static inlines. */
void luo_memfd_fix_size(struct file *file, bool fix)
{
	struct inode *inode = file_inode(file);

	if (luo_hugetlb_shift(file)) {
		luo_hugetlb_fix_size(file, fix);
	} else {
		inode_lock(inode);
		shmem_freeze(inode, fix);
		inode_unlock(inode);
	}
	if (fix)
		return;
	guard(mutex)(&moved_files_lock);
	xa_erase(&moved_files, (unsigned long)file);
}

/* file_inode() is a static inline. */
u64 luo_memfd_hold_holes(struct file *file)
{
	if (luo_hugetlb_shift(file))
		return luo_hugetlb_hold_holes(file);
	return shmem_hold_holes(file_inode(file));
}

/* As above. */
void luo_memfd_release_holes(struct file *file)
{
	if (luo_hugetlb_shift(file))
		luo_hugetlb_release_holes(file);
	else
		shmem_release_holes(file_inode(file));
}

/* Static inlines. Between two steps of anything long: -EINTR if the task is killed. */
int luo_pause(void)
{
	cond_resched();
	return fatal_signal_pending(current) ? -EINTR : 0;
}

/* A variable and a macro. Frames of this machine are below it. */
u64 luo_frame_end(void)
{
	return max_pfn;
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
		.flags = file->f_flags & (O_ACCMODE | PRESERVED_FLAGS),
		.mode = inode->i_mode & 01777,
		.uid = i_uid_read(inode),
		.gid = i_gid_read(inode),
		.huge_shift = luo_hugetlb_shift(file),
	};
	return 0;
}

/* A walk over a page cache, and what its steps have in common. */
struct finder {
	struct address_space *mapping;
	/* Where the last folios were pinned, and how many pins are not yet counted. */
	struct pglist_data *node;
	long pins;
	/* The pageblock of the last small folio, and whether what is in it may stay there. */
	unsigned long block;
	bool may_stay;
};

static void count_pins(struct finder *finder)
{
	if (finder->pins)
		mod_node_page_state(finder->node, NR_FOLL_PIN_ACQUIRED, finder->pins);
	finder->pins = 0;
}

/*
 * Pins the folio at a place of the page cache, unless it went away meanwhile. A pin and not just
 * a reference, as try_grab_folio() takes it: reclaim leaves pinned folios alone, instead of
 * unmapping them again and again for nothing. Whose folio it is, and with that whether it is
 * large, is known once it has our reference and still is in its place. KHO is for 64 bits, where
 * every large folio has a count of its own for pins.
 */
static bool try_pin(struct finder *finder, struct xa_state *xas, struct folio *folio)
{
	bool large = test_bit(PG_head, &folio->flags.f);
	int refs = large ? 1 : GUP_PIN_COUNTING_BIAS;

	if (!folio_ref_try_add(folio, refs))
		return false;
	if (unlikely(folio != xas_reload(xas) || folio_test_large(folio) != large)) {
		folio_put_refs(folio, refs);
		return false;
	}
	if (large)
		atomic_inc(&folio->_pincount);
	if (unlikely(folio_pgdat(folio) != finder->node)) {
		count_pins(finder);
		finder->node = folio_pgdat(folio);
	}
	finder->pins++;
	return true;
}

/*
 * Nothing can stay in the scratch memory that the next kernel boots in. Shmem's folios move out of
 * other CMA and movable memory as well, as whatever is pinned does; for hugetlb's there may be no
 * other place, and what they are made of is theirs (hugetlb_cma).
 */
static bool folio_may_stay(struct folio *folio)
{
	if (folio_test_hugetlb(folio))
		return luo_hugetlb_can_stay(folio);
	return folio_is_longterm_pinnable(folio);
}

/*
 * The same of small folios once a pageblock. CMA and the movable zone are made of whole
 * pageblocks, and shmem has no pages of devices.
 */
static bool may_stay(struct finder *finder, struct folio *folio, unsigned long pfn)
{
	unsigned long block = pfn >> pageblock_order;

	if (folio_test_large(folio))
		return folio_may_stay(folio);
	if (block != finder->block) {
		finder->block = block;
		finder->may_stay = folio_is_longterm_pinnable(folio);
	}
	return finder->may_stay;
}

/*
 * Reclaim and collapse take a folio out of the page cache under its lock, and leave alone what
 * has a reference that they did not count. So who has a reference, and after that finds the folio
 * unlocked and in the cache, can rely on it. Otherwise wait and look again.
 */
static enum luo_found_state state_of(struct finder *finder, struct folio *folio,
				     unsigned long pfn, struct folio **locked)
{
	unsigned long flags = READ_ONCE(folio->flags.f);

	if (unlikely(flags & BIT(PG_locked))) {
		*locked = folio;
		return LUO_FOUND_GONE;
	}
	/* The mapping as it was when the lock was let go, or later. */
	smp_rmb();
	if (unlikely(READ_ONCE(folio->mapping) != finder->mapping))
		return LUO_FOUND_GONE;
	if (unlikely(folio_contain_hwpoisoned_page(folio)))
		return LUO_FOUND_POISONED;
	if (!may_stay(finder, folio, pfn))
		return LUO_FOUND_MOVABLE;
	return flags & BIT(PG_uptodate) ? LUO_FOUND_HELD : LUO_FOUND_UNWRITTEN;
}

/*
 * Pins the single page at a place of the page cache, if it is one that can be preserved as it is:
 * what try_pin() and state_of() do, with nothing that is not needed for that. Of a page that is
 * anything else nothing has changed.
 */
static __always_inline bool pin_single(struct finder *finder, struct xa_state *xas,
				       struct folio *folio)
{
	const unsigned long mask = BIT(PG_head) | BIT(PG_locked) | BIT(PG_uptodate) | __PG_HWPOISON;
	unsigned long pfn = folio_pfn(folio);

	if (!xas->xa_node || (READ_ONCE(folio->flags.f) & mask) != BIT(PG_uptodate) ||
	    !folio_ref_try_add(folio, GUP_PIN_COUNTING_BIAS))
		return false;
	/* The reference is a full barrier: what follows is read after it. */
	if (likely(rcu_access_pointer(xas->xa_node->slots[xas->xa_offset]) == folio &&
		   (READ_ONCE(folio->flags.f) & mask) == BIT(PG_uptodate))) {
		/* As in state_of(). */
		smp_rmb();
		if (likely(READ_ONCE(folio->mapping) == finder->mapping &&
			   folio_pgdat(folio) == finder->node && may_stay(finder, folio, pfn))) {
			finder->pins++;
			return true;
		}
	}
	folio_put_refs(folio, GUP_PIN_COUNTING_BIAS);
	return false;
}

/*
 * Whether a folio follows those of a run, in the file and in memory. Runs of single pages end with
 * their block of frames.
 */
static bool continues(const struct luo_found *run, u64 index, u64 pfn, u8 order)
{
	return run->pfn + run->pages == pfn && run->index + run->pages == index &&
	       run->state == LUO_FOUND_HELD && run->order == order &&
	       (order || pfn % LUO_BLOCK_FRAMES);
}

/* What to do with a folio of any kind, which was pinned and stays so only if it is HELD or so. */
static void find_pinned(struct finder *finder, struct folio *folio, u64 from,
			struct luo_found *found, struct folio **locked)
{
	unsigned long pfn = folio_pfn(folio);

	*found = (struct luo_found) {
		.index = folio->index,
		.pfn = pfn,
		.pages = folio_nr_pages(folio),
		.order = folio_order(folio),
		.state = state_of(finder, folio, pfn, locked),
	};
	if (found->state <= LUO_FOUND_UNWRITTEN)
		return;
	/* Who looks again begins here, not with what is held. */
	if (found->index < from) {
		found->pages -= from - found->index;
		found->index = from;
	}
	if (!*locked)
		unpin_folio(folio);
}

/*
 * The page cache is an xarray, and pins are internal to mm. Only folios that are HELD or
 * UNWRITTEN stay pinned; of the first kind there may be several in one entry.
 */
u32 luo_memfd_find(struct file *file, u64 *start, u64 last, struct luo_found *found, u32 room)
{
	struct finder finder = { .mapping = file->f_mapping, .block = ULONG_MAX };
	XA_STATE(xas, &finder.mapping->i_pages, *start);
	struct folio *folio, *locked = NULL;
	u32 count = 0, steps = 0;
	u64 from = *start;

	rcu_read_lock();
	xas_for_each(&xas, folio, last) {
		struct luo_found *next = &found[count];

		if (xas_retry(&xas, folio))
			continue;
		if (xa_is_value(folio)) {
			*next = (struct luo_found) {
				.index = xas.xa_index,
				.pages = 1,
				.state = LUO_FOUND_SWAPPED,
			};
			count++;
		} else if (likely(pin_single(&finder, &xas, folio))) {
			u64 pfn = folio_pfn(folio);

			if (count && continues(next - 1, xas.xa_index, pfn, 0)) {
				next[-1].pages++;
			} else {
				*next = (struct luo_found) {
					.index = xas.xa_index,
					.pfn = pfn,
					.pages = 1,
					.state = LUO_FOUND_HELD,
				};
				count++;
			}
		} else if (unlikely(!try_pin(&finder, &xas, folio))) {
			xas_reset(&xas);
			continue;
		} else {
			find_pinned(&finder, folio, from, next, &locked);
			if (count && next->state == LUO_FOUND_HELD &&
			    continues(next - 1, next->index, next->pfn, next->order))
				next[-1].pages += next->pages;
			else
				count++;
		}
		if (count == room || ++steps == LUO_FOUND_STEPS_MAX || locked)
			break;
	}
	rcu_read_unlock();
	count_pins(&finder);
	if (count)
		*start = found[count - 1].index + found[count - 1].pages;
	if (locked) {
		folio_lock(locked);
		folio_unlock(locked);
		unpin_folio(locked);
	}
	return count;
}

/* shmem_get_folio() is internal; a hole stays one. What comes in may stay where it is. */
int luo_memfd_swap_in(struct file *file, u64 index)
{
	unsigned int flags = memalloc_pin_save();
	struct folio *folio = NULL;
	int err;

	err = shmem_get_folio(file_inode(file), index, 0, &folio, SGP_READ);
	memalloc_pin_restore(flags);
	if (!err && folio) {
		folio_unlock(folio);
		folio_put(folio);
	}
	return err;
}

static int moved_bytes_get(void *data, u64 *bytes)
{
	*bytes = atomic64_read(&moved_bytes);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(moved_bytes_fops, moved_bytes_get, NULL, "%llu\n");

/* A line for each preserved file of which something was moved: bytes, inode and name. */
static int moved_files_show(struct seq_file *seq, void *unused)
{
	char name[LUO_MEMFD_NAME_ROOM];
	unsigned long key;
	void *entry;

	guard(mutex)(&moved_files_lock);
	xa_for_each(&moved_files, key, entry) {
		/* Preserved files are referenced until they are released, which takes the lock. */
		luo_memfd_name((struct file *)key, name);
		seq_printf(seq, "%lu %llu ", xa_to_value(entry) << PAGE_SHIFT,
			   (u64)file_inode((struct file *)key)->i_ino);
		seq_escape(seq, name, " \t\n\\");
		seq_putc(seq, '\n');
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(moved_files);

/* Beside the counters of the handler, which are there since device_initcall. */
static int __init show_moved_bytes(void)
{
	struct dentry *directory = debugfs_lookup("luo_handlers", NULL);

	if (directory) {
		debugfs_create_file_unsafe("moved_bytes", 0444, directory, NULL,
					   &moved_bytes_fops);
		debugfs_create_file("moved_files", 0444, directory, NULL, &moved_files_fops);
	}
	dput(directory);
	return 0;
}
late_initcall(show_moved_bytes);

/*
 * Migration of a huge page only tries for locks that a fault on any page of the file holds while
 * it clears one. That ends soon, and looks like a want of memory until then.
 */
#define MOVE_PATIENCE	(2 * HZ)

/*
 * memfd_pin_folios() has no binding. It moves what it pins out of CMA and movable
 * memory, which is all we want of it. It fills holes: the range must not have any.
 */
int luo_memfd_move(struct file *file, u64 index, u64 last)
{
	struct folio *folios[LUO_FOUND_MAX];
	unsigned long patience = jiffies + MOVE_PATIENCE;
	pgoff_t offset;
	long pinned, i;
	int err = 0;

	for (;;) {
		pinned = memfd_pin_folios(file, (loff_t)index << PAGE_SHIFT,
					  (loff_t)last << PAGE_SHIFT, folios, LUO_FOUND_MAX,
					  &offset);
		if (pinned != -ENOMEM || !luo_hugetlb_shift(file) ||
		    time_after(jiffies, patience) || fatal_signal_pending(current))
			break;
		fsleep(1000);
	}
	if (pinned < 0)
		return fatal_signal_pending(current) ? -EINTR : pinned;
	for (i = 0; i < pinned && !err; i++)
		err = folio_may_stay(folios[i]) ? 0 : -EBUSY;
	unpin_folios(folios, pinned);
	count_moved(file, last - index + 1);
	return err;
}

/* pfn_folio() is a macro, and there are many of them. */
void luo_frames_unpin(u64 pfn, u64 pages, u8 order)
{
	u64 end = pfn + pages;

	for (; pfn < end; pfn += 1UL << order) {
		unpin_folio(pfn_folio(pfn));
		cond_resched();
	}
}

/* A variable, where there is memory that can fail. Grows with each page that does. */
u64 luo_poisoned_pages(void)
{
#ifdef CONFIG_MEMORY_FAILURE
	return atomic_long_read(&num_poisoned_pages);
#else
	return 0;
#endif
}

/* struct folio: where a folio that is pinned is in its file. */
u64 luo_frames_index(u64 pfn)
{
	return pfn_folio(pfn)->index;
}

/* As luo_frames_unpin(). The number of pages before the first folio that has failed. */
u64 luo_frames_sound(u64 pfn, u64 pages, u8 order)
{
	u64 sound;

	for (sound = 0; sound < pages; sound += 1UL << order) {
		if (folio_contain_hwpoisoned_page(pfn_folio(pfn + sound)))
			break;
		cond_resched();
	}
	return sound;
}

/* As shmem does on the first fault, for the task that comes first; all of it static inlines. */
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
 * Counters and reclaim of cgroups are internal to mm. Whether there is room for @pages under
 * the limits that what is retrieved is charged to: -EAGAIN if not. Asked before the first
 * frame is taken, since what was taken is given up if the rest does not follow.
 */
int luo_memfd_has_room(u64 pages)
{
#ifdef CONFIG_MEMCG
	struct mem_cgroup *memcg = get_mem_cgroup_from_mm(NULL);
	struct page_counter *full;
	int tries = 16, err = 0;

	while (!page_counter_try_charge(&memcg->memory, pages, &full)) {
		err = luo_pause() ? : -EAGAIN;
		if (err == -EINTR || !tries-- ||
		    !try_to_free_mem_cgroup_pages(mem_cgroup_from_counter(full, memory), pages,
						  GFP_KERNEL, MEMCG_RECLAIM_MAY_SWAP, NULL))
			goto put;
	}
	page_counter_uncharge(&memcg->memory, pages);
	err = 0;
put:
	mem_cgroup_put(memcg);
	return err;
#else
	return 0;
#endif
}

/* memfd_alloc_file() is internal, and so are the fields of what it makes. */
struct file *luo_memfd_create(const struct luo_memfd_attributes *attributes)
{
	char name[NAME_PREFIX_LEN + LUO_MEMFD_NAME_ROOM] = NAME_PREFIX;
	unsigned int flags = MFD_ALLOW_SEALING;
	struct inode *inode;
	struct file *file;
	int err;

	memcpy(name + NAME_PREFIX_LEN, attributes->name, LUO_MEMFD_NAME_ROOM);
	if (attributes->huge_shift)
		flags |= MFD_HUGETLB | attributes->huge_shift << MFD_HUGE_SHIFT;
	file = memfd_alloc_file(name, flags);
	if (IS_ERR(file))
		return file;
	inode = file_inode(file);
	i_uid_write(inode, attributes->uid);
	i_gid_write(inode, attributes->gid);
	/* The exec seal may imply others, depending on the mode. */
	inode->i_mode = (inode->i_mode & ~07777) | (attributes->mode & 01777);
	/* Adding a seal waits for pages that others hold: nobody holds one yet. */
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
	file->f_flags = (file->f_flags & ~PRESERVED_FLAGS) | (attributes->flags & PRESERVED_FLAGS);
	file->f_iocb_flags = iocb_flags(file);
	err = vfs_setpos(file, attributes->position, MAX_LFS_FILESIZE) < 0 ? -EINVAL : 0;
	if (err)
		goto err_put;
	return file;

err_put:
	fput(file);
	return ERR_PTR(err);
}

/* Folios of one order, whose index is set, on their way into the page cache of a file. */
struct insertion {
	struct address_space *mapping;
	struct luo_claim *claim;
	long accounted;
	u8 order;
	unsigned int count;
	struct folio *folios[128];
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

#ifdef CONFIG_MEMCG
/* As try_charge_memcg() looks at it, which has whoever is above reclaim. */
static bool is_below_high(struct mem_cgroup *memcg)
{
	for (; memcg; memcg = parent_mem_cgroup(memcg))
		if (page_counter_read(&memcg->memory) > READ_ONCE(memcg->memory.high) ||
		    page_counter_read(&memcg->swap) > READ_ONCE(memcg->swap.high))
			return false;
	return true;
}
#endif

/*
 * mem_cgroup_charge() for all but the first, to whatever that was charged to. Not if anything has
 * to be reclaimed for it, or somebody throttled: false then, and each is charged as usual.
 */
static bool charge_as_the_first(struct folio **folios, unsigned int count)
{
#ifdef CONFIG_MEMCG
	struct obj_cgroup *objcg = folio_objcg(folios[0]);
	unsigned int i, more = (count - 1) << folio_order(folios[0]);
	struct page_counter *full;
	struct mem_cgroup *memcg;
	bool charged;

	/* The first version of cgroups counts more. */
	if (!objcg || !cgroup_subsys_on_dfl(memory_cgrp_subsys))
		return false;
	if (!obj_cgroup_is_root(objcg)) {
		rcu_read_lock();
		memcg = obj_cgroup_memcg(objcg);
		charged = page_counter_try_charge(&memcg->memory, more, &full);
		if (charged && !is_below_high(memcg)) {
			page_counter_uncharge(&memcg->memory, more);
			charged = false;
		}
		rcu_read_unlock();
		if (!charged)
			return false;
	}
	obj_cgroup_get_many(objcg, count - 1);
	for (i = 1; i < count; i++)
		folios[i]->memcg_data = folios[0]->memcg_data;
	return true;
#else
	return true;
#endif
}

static int charge(struct folio **folios, unsigned int count, gfp_t gfp)
{
	int err = 0;

	while (count && !err) {
		unsigned int i, same = 1;

		/* Each node has counters of its own. */
		while (same < count && folio_nid(folios[same]) == folio_nid(folios[0]))
			same++;
		err = mem_cgroup_charge(folios[0], NULL, gfp);
		if (!err && !charge_as_the_first(folios, same))
			for (i = 1; i < same && !err; i++)
				err = mem_cgroup_charge(folios[i], NULL, gfp);
		folios += same;
		count -= same;
	}
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

/* lruvec_add_folio() for all of them, which have the same flags and order; the lock is held. */
static void add_to_lru(struct lruvec *lruvec, struct folio **folios, unsigned int count)
{
	enum lru_list lru = folio_lru_list(folios[0]);
	unsigned int i, in_zone[MAX_NR_ZONES] = {};

	for (i = 0; i < count; i++) {
		folio_set_lru(folios[i]);
		if (IS_ENABLED(CONFIG_LRU_GEN)) {
			lruvec_add_folio(lruvec, folios[i]);
			continue;
		}
		in_zone[folio_zonenum(folios[i])] += folio_nr_pages(folios[i]);
		list_add(&folios[i]->lru, &lruvec->lists[lru]);
	}
	for (i = 0; i < MAX_NR_ZONES; i++)
		if (in_zone[i])
			update_lru_size(lruvec, lru, i, in_zone[i]);
}

/* What shmem_update_stats() and folio_add_lru() do, once for all that have it in common. */
static void publish(struct folio **folios, unsigned int count)
{
	while (count) {
		unsigned int same = 1, pages;
		struct lruvec *lruvec;

		while (same < count && same_lruvec(folios[0], folios[same]))
			same++;
		pages = same << folio_order(folios[0]);
		if (folio_test_pmd_mappable(folios[0]))
			lruvec_stat_mod_folio(folios[0], NR_SHMEM_THPS, pages);
		lruvec_stat_mod_folio(folios[0], NR_FILE_PAGES, pages);
		lruvec_stat_mod_folio(folios[0], NR_SHMEM, pages);
		lruvec = folio_lruvec_lock_irq(folios[0]);
		add_to_lru(lruvec, folios, same);
		lruvec_unlock_irq(lruvec);
		folios += same;
		count -= same;
	}
}

/*
 * After xas_store(): the free slots after it in the same node take the next folios, as that
 * would, if they belong there. Returns how many.
 */
static unsigned int store_in_node(struct xa_state *xas, struct folio **folios, unsigned int count)
{
	struct xa_node *node = xas->xa_node;
	unsigned int stored;

	if (!node)
		return 0;
	count = min_t(unsigned int, count, XA_CHUNK_MASK - xas->xa_offset);
	for (stored = 0; stored < count; stored++) {
		void __rcu **slot = &node->slots[xas->xa_offset + 1 + stored];

		if (folios[stored]->index != xas->xa_index + 1 + stored ||
		    rcu_access_pointer(*slot))
			break;
		rcu_assign_pointer(*slot, folios[stored]);
	}
	node->count += stored;
	xas->xa_offset += stored;
	xas->xa_index += stored;
	return stored;
}

/*
 * As shmem_add_to_page_cache(), for all of them under one lock. @number is how many
 * went in: a place that has a page already does not take another.
 */
static int store(struct insertion *insertion, unsigned int *number)
{
	struct address_space *mapping = insertion->mapping;
	u8 order = insertion->order;
	XA_STATE(xas, &mapping->i_pages, 0);
	unsigned int stored = 0;

	do {
		unsigned int before = stored;

		xas_lock_irq(&xas);
		while (stored < insertion->count) {
			pgoff_t index = insertion->folios[stored]->index;

			if (order || xas.xa_index != index)
				xas_set_order(&xas, index, order);
			if (order ? xas_find_conflict(&xas) : xas_load(&xas))
				xas_set_err(&xas, -EEXIST);
			else
				xas_store(&xas, insertion->folios[stored]);
			if (xas_error(&xas))
				break;
			stored++;
			if (order)
				continue;
			stored += store_in_node(&xas, insertion->folios + stored,
						insertion->count - stored);
			xas_next(&xas);
		}
		mapping->nrpages += (stored - before) << order;
		xas_unlock_irq(&xas);
	} while (xas_nomem(&xas, mapping_gfp_mask(mapping) & GFP_RECLAIM_MASK));
	*number = stored;
	return xas_error(&xas);
}

/*
 * Nobody knows of these folios yet, so there is no need for their lock, nor for
 * atomic flags. A clean page can be reclaimed, and would be lost: hence dirty.
 */
static int ready(struct insertion *insertion)
{
	gfp_t gfp = mapping_gfp_mask(insertion->mapping);
	u8 order = insertion->order;
	unsigned int i;
	int err;

	err = account(insertion, (long)insertion->count << order);
	if (!err)
		err = charge(insertion->folios, insertion->count, gfp);
	if (err)
		return err;
	for (i = 0; i < insertion->count; i++) {
		struct folio *folio = insertion->folios[i];

		folio->mapping = insertion->mapping;
		folio->flags.f |= BIT(PG_swapbacked) | BIT(PG_uptodate) | BIT(PG_dirty);
	}
	/* The contents must be there before anybody finds the page up to date. */
	smp_wmb();
	return 0;
}

static void give_back(struct folio *folio, u8 order)
{
	folio->mapping = NULL;
	folio->flags.f &= ~(BIT(PG_swapbacked) | BIT(PG_uptodate) | BIT(PG_dirty));
	folio_put_refs(folio, 1 << order);
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
		err = store(insertion, &stored);
		publish(insertion->folios, stored);
	}
	for (i = stored; i < insertion->count; i++)
		give_back(insertion->folios[i], insertion->order);
	insertion->count = 0;
	return err ? : luo_pause();
}

/* Takes over our reference. */
static int insert_folio(struct insertion *insertion, struct folio *folio, u8 order, pgoff_t index)
{
	int err = 0;

	if (insertion->count == ARRAY_SIZE(insertion->folios) || order != insertion->order)
		err = flush(insertion);
	if (err) {
		folio_put(folio);
		return err;
	}
	insertion->order = order;
	folio->index = index;
	/* The page cache has a reference of each page. */
	if (order)
		folio_ref_add(folio, (1 << order) - 1);
	insertion->folios[insertion->count++] = folio;
	return 0;
}

static int insert_run(struct insertion *insertion, const struct luo_run *run)
{
	u64 pfn = run->pfn, end = pfn + run->pages, index = run->index, taken, last;
	u8 here = luo_order_here(run->order);
	int err = 0;

	/* Shmem has no larger ones; what hugetlb had may be. */
	if (here > MAX_PAGECACHE_ORDER)
		return -EINVAL;
	while (pfn < end) {
		taken = luo_take_back(insertion->claim, pfn, end - pfn, run->order);
		if (!taken)
			return -EINVAL;
		for (last = pfn + taken; pfn < last && !err; pfn += 1UL << here) {
			err = insert_folio(insertion, pfn_folio(pfn), here, index);
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
int luo_memfd_insert(struct file *file, struct luo_claim *claim, const struct luo_run *runs,
		     u32 count)
{
	struct insertion insertion = { .mapping = file->f_mapping, .claim = claim };
	int err = 0, flushed;
	u32 i;

	if (luo_hugetlb_shift(file))
		return luo_hugetlb_insert(file, runs, count);

	for (i = 0; i < count && !err; i++)
		err = insert_run(&insertion, &runs[i]);
	flushed = flush(&insertion);
	/* Gives back what was accounted and did not go in. */
	shmem_recalc_inode(file_inode(file), insertion.accounted, 0);
	return err ? : flushed;
}
