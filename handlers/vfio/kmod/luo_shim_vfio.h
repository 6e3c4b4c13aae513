/* SPDX-License-Identifier: GPL-2.0-only */
/* What the vfio handler asks of C; the Rust side is in its kernel.rs. */
#ifndef _LUO_SHIM_VFIO_H
#define _LUO_SHIM_VFIO_H

#include <linux/types.h>

struct file;

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

#endif /* _LUO_SHIM_VFIO_H */
