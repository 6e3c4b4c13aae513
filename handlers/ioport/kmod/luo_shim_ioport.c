// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the ioport handler needs and Rust cannot express: fields of struct file and
 * struct inode, and functions internal to fs. What to do with all this is decided in
 * Rust.
 */
#include <linux/dcache.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/major.h>
#include <linux/mount.h>
#include <linux/pseudo_fs.h>

#include "../../fs/internal.h"
#include "luo_shim_ioport.h"

/* Among the memory devices; drivers/char/mem.c does not export the number. */
#define PORT MKDEV(MEM_MAJOR, 4)

/* file_inode() is a static inline, S_ISCHR() and MKDEV() are macros. */
bool luo_port_is_known(struct file *file)
{
	struct inode *inode = file_inode(file);

	return S_ISCHR(inode->i_mode) && inode->i_rdev == PORT;
}

/* Fields of struct file. */
u64 luo_port_look(struct file *file, u32 *flags)
{
	*flags = file->f_flags;
	return file->f_pos;
}

static int port_fs_init(struct fs_context *fc)
{
	return init_pseudo(fc, 0x4c554f50) ? 0 : -ENOMEM;
}

static struct file_system_type port_fs = {
	.name = "luo_port",
	.init_fs_context = port_fs_init,
	.kill_sb = kill_anon_super,
};

static struct vfsmount *port_mount;

/* A place for inodes that have no name anywhere; file systems are described by structs. */
static int __init luo_port_init(void)
{
	port_mount = kern_mount(&port_fs);
	return PTR_ERR_OR_ZERO(port_mount);
}
fs_initcall(luo_port_init);

/* A path to the device that leads through no directory. */
static int port_path(struct path *path)
{
	struct inode *inode = new_inode_pseudo(port_mount->mnt_sb);

	if (!inode)
		return -ENOMEM;
	inode->i_ino = get_next_ino();
	simple_inode_init_ts(inode);
	init_special_inode(inode, S_IFCHR | 0600, PORT);
	path->dentry = d_alloc_pseudo(port_mount->mnt_sb, &QSTR("port"));
	if (!path->dentry) {
		iput(inode);
		return -ENOMEM;
	}
	d_instantiate(path->dentry, inode);
	path->mnt = mntget(port_mount);
	return 0;
}

/*
 * d_alloc_pseudo() is internal. The driver's own open() asks for CAP_SYS_RAWIO, and
 * whether the kernel is locked down.
 */
struct file *luo_port_open(u32 flags, u64 position)
{
	struct file *file;
	struct path path;
	int err;

	if (IS_ERR_OR_NULL(port_mount))
		return ERR_PTR(-ENODEV);
	err = port_path(&path);
	if (err)
		return ERR_PTR(err);
	file = dentry_open(&path, flags | O_LARGEFILE, current_cred());
	path_put(&path);
	if (!IS_ERR(file))
		file->f_pos = position;
	return file;
}
