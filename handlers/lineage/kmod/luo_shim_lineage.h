/* SPDX-License-Identifier: GPL-2.0-only */
/* What the lineage subsystem asks of C; the Rust side is in its kernel.rs. */
#ifndef _LUO_SHIM_LINEAGE_H
#define _LUO_SHIM_LINEAGE_H

#include <linux/types.h>

u32 luo_lineage_version(void);

#endif /* _LUO_SHIM_LINEAGE_H */
