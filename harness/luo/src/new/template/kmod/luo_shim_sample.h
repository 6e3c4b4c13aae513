/* SPDX-License-Identifier: GPL-2.0-only */
/* What the sample handler asks of C; the Rust side is in its kernel.rs. */
#ifndef _LUO_SHIM_SAMPLE_H
#define _LUO_SHIM_SAMPLE_H

#include <linux/types.h>

struct file;

bool luo_sample_is_known(struct file *file);
u32 luo_sample_flags(struct file *file);
struct file *luo_sample_make(u32 flags);

#endif /* _LUO_SHIM_SAMPLE_H */
