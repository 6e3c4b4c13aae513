// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the vfio handler needs and Rust cannot say: structs and functions of VFIO and
 * PCI without a binding. Each function says why it is here. What to do with all this
 * is decided in Rust, to which a device is the address of its vfio_pci_core_device.
 */
#include <linux/anon_inodes.h>
#include <linux/bitfield.h>
#include <linux/file.h>
#include <linux/major.h>
#include <linux/miscdevice.h>
#include <linux/pci.h>
#include <linux/pm_runtime.h>
#include <linux/unaligned.h>
#include <linux/vfio.h>
#include <linux/vfio_pci_core.h>
#include <linux/xarray.h>

#include "../vfio/vfio.h"
#include "luo_shim_vfio.h"

static_assert(VFIO_PCI_NUM_REGIONS <= LUO_VFIO_REGIONS_MAX);
static_assert(VFIO_PCI_NUM_IRQS <= LUO_VFIO_IRQS_MAX);

static struct vfio_device_file *device_file(struct file *file)
{
	return file->f_op == &vfio_device_fops ? file->private_data : NULL;
}

/*
 * A driver beside vfio-pci may keep a state of its own in the device, and without an
 * IOMMU there is no character device to go on with.
 */
static bool is_vfio_pci(struct vfio_device *device)
{
	return dev_is_pci(device->dev) && !strcmp(device->ops->name, "vfio-pci") &&
	       !vfio_device_is_noiommu(device);
}

static struct vfio_pci_core_device *core_device(struct vfio_device *device)
{
	return container_of(device, struct vfio_pci_core_device, vdev);
}

static bool is_container(struct file *file)
{
	struct inode *inode = file_inode(file);

	return S_ISCHR(inode->i_mode) && inode->i_rdev == MKDEV(MISC_MAJOR, VFIO_MINOR);
}

/* f_op, private_data, and the structs behind them. */
u8 luo_vfio_kind(struct file *file)
{
	struct vfio_device_file *df = device_file(file);

	if (!df) {
		if (vfio_group_from_file(file))
			return LUO_VFIO_GROUP;
		return is_container(file) ? LUO_VFIO_CONTAINER : LUO_VFIO_OTHER;
	}
	if (!is_vfio_pci(df->device))
		return LUO_VFIO_FOREIGN;
	if (to_pci_dev(df->device->dev)->is_virtfn)
		return LUO_VFIO_VIRTUAL_FUNCTION;
	/* Paired with the smp_store_release() after vfio_df_open(). */
	if (!smp_load_acquire(&df->access_granted))
		return LUO_VFIO_UNBOUND;
	return df->group ? LUO_VFIO_DEVICE_OF_GROUP : LUO_VFIO_DEVICE;
}

/* Fields; NULL if the file is none of a device of vfio-pci. */
void *luo_vfio_device(struct file *file, u32 *flags)
{
	struct vfio_device_file *df = device_file(file);

	if (!df || !is_vfio_pci(df->device))
		return NULL;
	*flags = file->f_flags;
	return core_device(df->device);
}

/*
 * Devices that are prepared, or retrieved and not finished. One that is named twice,
 * through two files of a group or by a previous kernel that means harm, is kept once.
 */
static DEFINE_XARRAY(held);

static int hold(struct vfio_pci_core_device *vdev)
{
	return xa_insert(&held, (unsigned long)vdev, vdev, GFP_KERNEL);
}

/* xa_erase() takes a static; the file's own reference keeps the device itself. */
void luo_vfio_let_go(void *device)
{
	xa_erase(&held, (unsigned long)device);
}

/* A registration keeps the driver from being unbound; its functions are internal. */
int luo_vfio_pin(void *device)
{
	struct vfio_pci_core_device *vdev = device;
	int err;

	if (!vfio_device_try_get_registration(&vdev->vdev))
		return -ENODEV;
	err = hold(vdev);
	if (err)
		vfio_device_put_registration(&vdev->vdev);
	return err;
}

/* As above. */
void luo_vfio_unpin(void *device)
{
	struct vfio_pci_core_device *vdev = device;

	luo_vfio_let_go(vdev);
	vfio_device_put_registration(&vdev->vdev);
}

/* The ioctls of vfio-pci tell the same, but only to a process. */
static u32 irqs_of(struct vfio_pci_core_device *vdev, u32 index)
{
	struct pci_dev *pdev = vdev->pdev;
	u16 flags;

	switch (index) {
	case VFIO_PCI_INTX_IRQ_INDEX:
		return vdev->vconfig[PCI_INTERRUPT_PIN] ? 1 : 0;
	case VFIO_PCI_MSI_IRQ_INDEX:
		if (!pdev->msi_cap)
			return 0;
		pci_read_config_word(pdev, pdev->msi_cap + PCI_MSI_FLAGS, &flags);
		return 1 << FIELD_GET(PCI_MSI_FLAGS_QMASK, flags);
	case VFIO_PCI_MSIX_IRQ_INDEX:
		if (!pdev->msix_cap)
			return 0;
		pci_read_config_word(pdev, pdev->msix_cap + PCI_MSIX_FLAGS, &flags);
		return FIELD_GET(PCI_MSIX_FLAGS_QSIZE, flags) + 1;
	default:
		return 1;
	}
}

static u32 irq_flags(struct vfio_pci_core_device *vdev, u32 index)
{
	if (index == VFIO_PCI_INTX_IRQ_INDEX)
		return VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED;
	if (index == VFIO_PCI_MSIX_IRQ_INDEX && vdev->has_dyn_msix)
		return VFIO_IRQ_INFO_EVENTFD;
	return VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE;
}

static int describe_region(struct vfio_pci_core_device *vdev, u32 index,
			   struct luo_vfio_region *region)
{
	struct vfio_region_info info = { .index = index };
	struct vfio_info_cap caps = {};
	int err;

	err = vdev->vdev.ops->get_region_info_caps(&vdev->vdev, &info, &caps);
	/* One that this kind of device does not have, VGA's for one. */
	if (err == -EINVAL)
		return 0;
	if (!err)
		*region = (struct luo_vfio_region) {
			.offset = info.offset,
			.size = info.size,
			.flags = info.flags | (caps.size ? VFIO_REGION_INFO_FLAG_CAPS : 0),
		};
	kfree(caps.buf);
	return err;
}

/* What is only there while the device is open. */
static int describe_open(struct vfio_pci_core_device *vdev, struct luo_vfio_description *found)
{
	u32 i;
	int err;

	found->info_flags = VFIO_DEVICE_FLAGS_PCI;
	if (vdev->reset_works)
		found->info_flags |= VFIO_DEVICE_FLAGS_RESET;
	found->regions = VFIO_PCI_NUM_REGIONS + vdev->num_regions;
	if (found->regions > LUO_VFIO_REGIONS_MAX)
		return -EOPNOTSUPP;
	for (i = 0; i < found->regions; i++) {
		err = describe_region(vdev, i, &found->region[i]);
		if (err)
			return err;
	}
	found->irqs = VFIO_PCI_NUM_IRQS;
	for (i = 0; i < found->irqs; i++)
		found->irq[i] = (struct luo_vfio_irq) {
			.flags = irq_flags(vdev, i),
			.count = irqs_of(vdev, i),
		};
	return 0;
}

/* What PCI knows of every device. */
static void describe_closed(struct vfio_pci_core_device *vdev, struct luo_vfio_description *found)
{
	u32 i;

	found->info_flags = VFIO_DEVICE_FLAGS_PCI;
	found->regions = VFIO_PCI_CONFIG_REGION_INDEX + 1;
	for (i = 0; i < PCI_STD_NUM_BARS; i++)
		found->region[i].size = pci_resource_len(vdev->pdev, i);
	found->region[VFIO_PCI_CONFIG_REGION_INDEX].size = vdev->pdev->cfg_size;
}

static int describe_header(struct pci_dev *pdev, u8 *header)
{
	u32 offset, value;

	for (offset = 0; offset < LUO_VFIO_HEADER_LENGTH; offset += sizeof(value)) {
		if (pci_read_config_dword(pdev, offset, &value))
			return -EIO;
		put_unaligned_le32(value, header + offset);
	}
	/* What a slot answers without a device. */
	return get_unaligned_le16(header) == 0xffff ? -ENODEV : 0;
}

/*
 * Structs without a binding, and inlines of PCI and its power management. @size is
 * what the other side of the shim takes the description for.
 */
int luo_vfio_describe(void *device, bool is_open, struct luo_vfio_description *found, size_t size)
{
	struct vfio_pci_core_device *vdev = device;
	struct pci_dev *pdev = vdev->pdev;
	int err;

	if (WARN_ON_ONCE(size != sizeof(*found)))
		return -EINVAL;
	*found = (struct luo_vfio_description) {
		.segment = pci_domain_nr(pdev->bus),
		.bus = pdev->bus->number,
		.devfn = pdev->devfn,
	};
	err = pm_runtime_resume_and_get(&pdev->dev);
	if (err)
		return err;
	err = describe_header(pdev, found->header);
	if (!err && is_open)
		err = describe_open(vdev, found);
	else if (!err)
		describe_closed(vdev, found);
	pm_runtime_put(&pdev->dev);
	return err;
}

/* Whoever changes the command register holds the memory lock; the owner may, meanwhile. */
static bool set_master(struct vfio_pci_core_device *vdev, bool master)
{
	struct pci_dev *pdev = vdev->pdev;
	u16 command;

	down_write(&vdev->memory_lock);
	pci_read_config_word(pdev, PCI_COMMAND, &command);
	pci_write_config_word(pdev, PCI_COMMAND,
			      master ? command | PCI_COMMAND_MASTER :
				       command & ~PCI_COMMAND_MASTER);
	up_write(&vdev->memory_lock);
	return command & PCI_COMMAND_MASTER;
}

/* Locks of VFIO, and power management: a device that sleeps has no command register. */
int luo_vfio_quiesce(void *device, bool *was_master)
{
	struct vfio_pci_core_device *vdev = device;
	int err;

	err = pm_runtime_resume_and_get(&vdev->pdev->dev);
	if (err)
		return err;
	mutex_lock(&vdev->igate);
	if (vdev->irq_type == VFIO_PCI_NUM_IRQS)
		*was_master = set_master(vdev, false);
	else
		err = -EINVAL;
	mutex_unlock(&vdev->igate);
	if (err)
		pm_runtime_put(&vdev->pdev->dev);
	return err;
}

/* As above, in reverse. */
void luo_vfio_resume(void *device, bool was_master)
{
	struct vfio_pci_core_device *vdev = device;

	if (was_master)
		set_master(vdev, true);
	pm_runtime_put(&vdev->pdev->dev);
}

static struct vfio_pci_core_device *pin_bound(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *vdev;
	int err;

	if (!pdev->dev.driver || strcmp(pdev->dev.driver->name, "vfio-pci"))
		return ERR_PTR(-ENODEV);
	vdev = dev_get_drvdata(&pdev->dev);
	if (pdev->is_virtfn || !is_vfio_pci(&vdev->vdev))
		return ERR_PTR(-EOPNOTSUPP);
	err = luo_vfio_pin(vdev);
	return err ? ERR_PTR(err) : vdev;
}

/*
 * Inlines of PCI. Answers with a pin; -ENOENT if there is no device, -ENODEV if it is
 * not bound, -EOPNOTSUPP if it cannot be kept, -EBUSY if it is kept already and -EAGAIN
 * while somebody binds or unbinds it: whoever unbinds may wait for us.
 */
void *luo_vfio_find(u32 segment, u8 bus, u8 devfn)
{
	struct pci_dev *pdev = pci_get_domain_bus_and_slot(segment, bus, devfn);
	struct vfio_pci_core_device *vdev = ERR_PTR(-EAGAIN);

	if (!pdev)
		return ERR_PTR(-ENOENT);
	if (device_trylock(&pdev->dev)) {
		vdev = pin_bound(pdev);
		device_unlock(&pdev->dev);
	}
	pci_dev_put(pdev);
	return vdev;
}

/*
 * As vfio_device_fops_cdev_open() does for a character device, but with no inode
 * of one. On success the file takes over the registration of the pin.
 */
struct file *luo_vfio_open(void *device, u32 flags)
{
	struct vfio_pci_core_device *vdev = device;
	struct vfio_device_file *df;
	struct file *file;

	/* open() refuses this to every file without direct I/O. */
	if (flags & O_DIRECT)
		return ERR_PTR(-EINVAL);
	df = vfio_allocate_device_file(&vdev->vdev);
	if (IS_ERR(df))
		return ERR_CAST(df);
	file = anon_inode_getfile_fmode("[vfio-cdev]", &vfio_device_fops, df, flags,
					FMODE_PREAD | FMODE_PWRITE);
	if (IS_ERR(file)) {
		kfree(df);
		return file;
	}
	file->f_flags |= flags | O_LARGEFILE;
	file->f_mapping = vdev->vdev.inode->i_mapping;
	return file;
}
