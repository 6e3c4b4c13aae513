// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the sample handler needs and Rust cannot express. What to do with it is decided in
 * Rust.
 */
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/major.h>

#include "luo_shim_sample.h"

bool luo_sample_is_known(struct file *file)
{
	struct inode *inode = file_inode(file);

	return S_ISCHR(inode->i_mode) && inode->i_rdev == MKDEV(MEM_MAJOR, 7);
}

u32 luo_sample_flags(struct file *file)
{
	return file->f_flags;
}

/* Opened by the caller: with its rights, as its root directory has the name. */
struct file *luo_sample_make(u32 flags)
{
	struct file *file = filp_open("/dev/full", flags | O_LARGEFILE, 0);

	if (!IS_ERR(file) && !luo_sample_is_known(file)) {
		fput(file);
		return ERR_PTR(-ENODEV);
	}
	return file;
}
