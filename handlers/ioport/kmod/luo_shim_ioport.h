/* SPDX-License-Identifier: GPL-2.0-only */
/* What the ioport handler asks of C; the Rust side is in its kernel.rs. */
#ifndef _LUO_SHIM_IOPORT_H
#define _LUO_SHIM_IOPORT_H

#include <linux/types.h>

struct file;

bool luo_port_is_known(struct file *file);
u64 luo_port_look(struct file *file, u32 *flags);
struct file *luo_port_open(u32 flags, u64 position);

#endif /* _LUO_SHIM_IOPORT_H */
