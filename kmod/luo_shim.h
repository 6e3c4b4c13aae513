/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the module and the handlers ask of C.
 *
 * The Rust sides of these declarations are in shim.rs and, for those of a handler, in
 * that handler's kernel.rs.
 */
#ifndef _LUO_SHIM_H
#define _LUO_SHIM_H

#include <linux/mutex.h>
#include <linux/types.h>

struct file;

struct liveupdate_flb;

/* luo_shim.c: what was linked in */
const char *luo_disabled(void);
bool luo_is_disabled(const char *name);
const char *luo_switched_on(void);
void luo_handlers_section(const void ***start, const void ***stop);
void luo_subsystems_section(const void ***start, const void ***stop);

/* luo_shim.c: mainline's subsystems */
void luo_flb_did_not_come(struct liveupdate_flb *flb);

/* luo_shim.c: bytes that cross */
int luo_bytes_preserve(size_t len, void **bytes, unsigned long *pfn);
void *luo_bytes_outgoing(unsigned long pfn, size_t len);
bool luo_bytes_are_incoming(unsigned long pfn, size_t len);
int luo_bytes_copy(unsigned long pfn, size_t len, size_t offset, void *buffer, size_t count);
void luo_bytes_unpreserve(void *bytes);
void luo_bytes_free(unsigned long pfn, size_t len);
extern struct mutex luo_incoming;
int luo_kept_order(unsigned long pfn);

/* luo_shim.c: checksums */
u32 luo_crc32c(u32 so_far, const void *bytes, size_t len);

/* luo_shim_memfd.c */

/* What makes a memfd besides its contents; the flags and seals are the uapi's. */
struct luo_memfd_attributes {
	u64 size;
	u64 position;
	u32 seals;
	u32 flags;
	u32 mode;
};

/* What is found in a page cache. */
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
	LUO_FOUND_HELD,		/* a folio, of which the finder holds a reference */
	LUO_FOUND_UNWRITTEN,	/* the same, but allocated and never written */
	LUO_FOUND_MOVABLE,	/* the same, but where it cannot stay */
	LUO_FOUND_SWAPPED,	/* swapped out */
	LUO_FOUND_GONE,		/* was on its way out; look again */
	LUO_FOUND_POISONED,	/* memory that fails */
};

#define LUO_FOUND_MAX 31

bool luo_memfd_is_known(struct file *file);
unsigned long luo_memfd_id(struct file *file);
void luo_memfd_freeze(struct file *file, bool freeze);
int luo_memfd_attributes(struct file *file, struct luo_memfd_attributes *attributes);
u64 luo_memfd_pages(struct file *file);
u32 luo_memfd_find(struct file *file, u64 *start, u64 last, struct luo_found *found);
int luo_memfd_swap_in(struct file *file, u64 index);
int luo_memfd_move(struct file *file, u64 index, u64 last);
void luo_frames_put(u64 pfn, u64 pages, u8 order);
void luo_frames_write_zeros(u64 pfn);
int luo_frames_preserve(u64 pfn, u64 pages, u8 order);
void luo_frames_unpreserve(u64 pfn, u64 pages, u8 order);
void luo_frames_discard(u64 pfn, u64 pages, u8 order);
struct file *luo_memfd_create(const struct luo_memfd_attributes *attributes);
int luo_memfd_insert(struct file *file, const struct luo_run *runs, u32 count);

/* luo_shim_ioport.c */
bool luo_port_is_known(struct file *file);
u64 luo_port_look(struct file *file, u32 *flags);
struct file *luo_port_open(u32 flags, u64 position);

/* luo_shim_lineage.c */
u32 luo_lineage_version(void);

/* luo_shim_vfio.c */

#define LUO_VFIO_HEADER_LENGTH 64
#define LUO_VFIO_REGIONS_MAX 16
#define LUO_VFIO_IRQS_MAX 8
#define LUO_VFIO_RESET_METHODS 8

struct luo_vfio_region {
	u64 offset;
	u64 size;
	u32 flags;
};

struct luo_vfio_irq {
	u32 flags;
	u32 count;
};

/* A device; the flags are the uapi's. */
struct luo_vfio_description {
	u32 segment;
	u32 info_flags;
	u32 regions;
	u32 irqs;
	u8 bus;
	u8 devfn;
	u8 header[LUO_VFIO_HEADER_LENGTH];
	struct luo_vfio_region region[LUO_VFIO_REGIONS_MAX];
	struct luo_vfio_irq irq[LUO_VFIO_IRQS_MAX];
};

enum luo_vfio_kind {
	LUO_VFIO_OTHER,			/* nothing of VFIO */
	LUO_VFIO_DEVICE,		/* from its character device, and bound to an iommufd */
	LUO_VFIO_DEVICE_OF_GROUP,	/* from a group */
	LUO_VFIO_UNBOUND,		/* from its character device, and not bound */
	LUO_VFIO_GROUP,
	LUO_VFIO_CONTAINER,
	LUO_VFIO_FOREIGN,		/* a device with another driver than vfio-pci itself */
	LUO_VFIO_VIRTUAL_FUNCTION,
};

/* What is restored if the jump does not come. */
struct luo_vfio_quiet {
	u16 command;
	u8 reset_methods[LUO_VFIO_RESET_METHODS];
};

/* Who has a device open; 0 and nothing if that is not known. */
struct luo_vfio_owner {
	int pid;
	char name[16];
};

/* No address of a device. */
#define LUO_VFIO_NOWHERE U64_MAX

u8 luo_vfio_kind(struct file *file);
void *luo_vfio_device(struct file *file, u32 *flags);
u64 luo_vfio_address(void *device);
int luo_vfio_pin(void *device);
void luo_vfio_unpin(void *device);
int luo_vfio_describe(void *device, bool is_open, struct luo_vfio_description *found);
int luo_vfio_quiesce(void *device, struct luo_vfio_quiet *quiet);
void luo_vfio_resume(void *device, const struct luo_vfio_quiet *quiet);
void *luo_vfio_find(u32 segment, u8 bus, u8 devfn, struct luo_vfio_owner *owner);
void luo_vfio_lose(void *device);
void luo_vfio_finish(void *device, u64 address);
struct file *luo_vfio_open(void *device, u32 flags);

#endif /* _LUO_SHIM_H */
