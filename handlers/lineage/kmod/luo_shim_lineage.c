// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the lineage subsystem needs and Rust cannot express.
 */
#include <linux/version.h>

#include "luo_shim_lineage.h"

/* A macro: major, minor and patch level, a byte each. */
u32 luo_lineage_version(void)
{
	return LINUX_VERSION_CODE;
}
