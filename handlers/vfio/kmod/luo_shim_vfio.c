// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the vfio handler needs and Rust cannot express: structs and functions of VFIO and
 * PCI without a binding. The comment of each function begins with why it is here. What
 * to do with all this is decided in Rust, to which a device is the address of its
 * vfio_pci_core_device.
 */
#define pr_fmt(fmt) "luo_handlers: vfio: " fmt

#include <linux/anon_inodes.h>
#include <linux/bitfield.h>
#include <linux/cdev.h>
#include <linux/file.h>
#include <linux/jiffies.h>
#include <linux/kexec_handover.h>
#include <linux/liveupdate.h>
#include <linux/lockdep.h>
#include <linux/major.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/pm_runtime.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/unaligned.h>
#include <linux/vfio.h>
#include <linux/vfio_pci_core.h>
#include <linux/xarray.h>

#include "../vfio/vfio.h"
#include "../vfio/pci/vfio_pci_priv.h"
#include "luo_shim.h"
#include "luo_shim_vfio.h"

static_assert(VFIO_PCI_NUM_REGIONS <= LUO_VFIO_REGIONS_MAX);
static_assert(VFIO_PCI_NUM_IRQS <= LUO_VFIO_IRQS_MAX);

/* As on the other side of the shim. */
static_assert(sizeof(struct luo_vfio_description) == 536);
static_assert(sizeof(struct luo_vfio_quiet) == 10);
static_assert(sizeof(struct luo_vfio_owner) == 20);

static struct vfio_device_file *device_file(struct file *file)
{
	return file->f_op == &vfio_device_fops ? file->private_data : NULL;
}

/*
 * A driver other than vfio-pci may have a state of its own in the device, and without
 * an IOMMU there is no character device to go on with.
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

/* f_op, private_data, and the structs that they lead to. */
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

/* Fields; NULL if the file is not of a device of vfio-pci. */
void *luo_vfio_device(struct file *file, u32 *flags)
{
	struct vfio_device_file *df = device_file(file);

	if (!df || !is_vfio_pci(df->device))
		return NULL;
	*flags = file->f_flags;
	return core_device(df->device);
}

static u64 address_of(struct pci_dev *pdev)
{
	return (u64)pci_domain_nr(pdev->bus) << 16 | pci_dev_id(pdev);
}

/* An inline. */
u64 luo_vfio_address(void *device)
{
	struct vfio_pci_core_device *vdev = device;

	return address_of(vdev->pdev);
}

/*
 * The devices that cross, for the next kernel: it reserves them before any process
 * runs. It does not know them otherwise until somebody asks for one of them, since
 * mainline reads its own list at the first open of /dev/liveupdate.
 */
#define CROSSING_NAME "luo-handlers,vfio-devices-v1"
#define CROSSING_MAX 510

struct crossing {
	u64 magic;
	u64 count;
	u64 address[CROSSING_MAX];
};

static_assert(sizeof(struct crossing) == 4096);

#define CROSSING_MAGIC 0x314f4946564f554cULL /* ASCII for 'LUOVFIO1' */

static struct crossing *crossing;
static DEFINE_MUTEX(crossing_lock);

static int crossing_add(u64 address)
{
	guard(mutex)(&crossing_lock);
	if (!crossing)
		return 0;
	if (crossing->count == CROSSING_MAX)
		return -ENOSPC;
	crossing->address[crossing->count++] = address;
	return 0;
}

static void crossing_remove(u64 address)
{
	u64 i;

	guard(mutex)(&crossing_lock);
	for (i = 0; crossing && i < crossing->count; i++) {
		if (crossing->address[i] == address) {
			crossing->address[i] = crossing->address[--crossing->count];
			break;
		}
	}
}

/*
 * Devices that are prepared, or retrieved and not finished. One that is named twice,
 * through two files of a group or by a hostile previous kernel, is preserved once.
 */
static DEFINE_XARRAY(held);

/* A registration prevents the driver from being unbound; its functions are internal. */
static int hold(struct vfio_pci_core_device *vdev)
{
	int err;

	if (!vfio_device_try_get_registration(&vdev->vdev))
		return -ENODEV;
	err = xa_insert(&held, (unsigned long)vdev, vdev, GFP_KERNEL);
	if (err)
		vfio_device_put_registration(&vdev->vdev);
	return err;
}

static void release(struct vfio_pci_core_device *vdev)
{
	xa_erase(&held, (unsigned long)vdev);
	vfio_device_put_registration(&vdev->vdev);
}

/* The two above; -EBUSY if the device is prepared already, -ENOSPC if too many are. */
int luo_vfio_pin(void *device)
{
	struct vfio_pci_core_device *vdev = device;
	int err = hold(vdev);

	if (err)
		return err;
	err = crossing_add(address_of(vdev->pdev));
	if (err)
		release(vdev);
	return err;
}

/* As above. */
void luo_vfio_unpin(void *device)
{
	struct vfio_pci_core_device *vdev = device;

	crossing_remove(address_of(vdev->pdev));
	release(vdev);
}

/* The ioctls of vfio-pci report the same, but only to a process. */
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
 * Keeps a device awake that is awake, or that nobody has open. One that its owner has
 * put to sleep is left alone: waking it would be a wake event to the owner.
 */
static int stay_awake(struct vfio_pci_core_device *vdev)
{
	struct device *dev = &vdev->pdev->dev;
	bool asleep;
	int err;

	pm_runtime_get_noresume(dev);
	down_read(&vdev->memory_lock);
	asleep = vdev->pm_runtime_engaged;
	up_read(&vdev->memory_lock);
	err = asleep ? -EBUSY : pm_runtime_resume(dev);
	if (err < 0)
		pm_runtime_put(dev);
	return min(err, 0);
}

/*
 * Structs without a binding, and inlines of PCI and its power management. -EBUSY if the
 * device is in low power.
 */
int luo_vfio_describe(void *device, bool is_open, struct luo_vfio_description *found)
{
	struct vfio_pci_core_device *vdev = device;
	struct pci_dev *pdev = vdev->pdev;
	int err;

	*found = (struct luo_vfio_description) {
		.segment = pci_domain_nr(pdev->bus),
		.bus = pdev->bus->number,
		.devfn = pdev->devfn,
	};
	err = stay_awake(vdev);
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

/*
 * device_lock() does not end. A reset holds the device's lock for a second or two, an
 * unbind until its files are closed, ours among them.
 */
#define PATIENCE (10 * HZ)

/* Whether to look again; -EINTR if the task was killed. */
static int wait_until(unsigned long end)
{
	if (time_after(jiffies, end))
		return -EAGAIN;
	schedule_timeout_killable(1);
	return fatal_signal_pending(current) ? -EINTR : 0;
}

static int lock_device(struct pci_dev *pdev)
{
	unsigned long end = jiffies + PATIENCE;
	int err;

	while (!device_trylock(&pdev->dev)) {
		err = wait_until(end);
		if (err)
			return err;
	}
	return 0;
}

/*
 * From here to the jump or to luo_vfio_resume() nothing makes the device do anything:
 *
 * - interrupts are off, and igate keeps them off;
 * - the memory lock locks everybody out of its BARs, which are unmapped, from its power
 *   state, and in VFIO from its command register;
 * - with config access locked neither VFIO nor sysfs writes to its configuration.
 *
 * Tasks that come meanwhile wait, as for a reset, and go on if the jump is aborted.
 * The locks are taken in VFIO's order. For lockdep they are released, as when a file
 * system is frozen: there may be many of one class. The task that freezes also
 * resumes; mainline does both within one reboot(2).
 *
 * Nobody may wait for these locks with the device's own lock, which device_shutdown()
 * takes. A reset through sysfs would; without a reset method it fails.
 */
int luo_vfio_quiesce(void *device, struct luo_vfio_quiet *quiet)
{
	struct vfio_pci_core_device *vdev = device;
	struct pci_dev *pdev = vdev->pdev;
	u16 command;
	int err;

	BUILD_BUG_ON(sizeof(quiet->reset_methods) != sizeof(pdev->reset_methods));
	err = stay_awake(vdev);
	if (err)
		return err;
	err = lock_device(pdev);
	if (err)
		goto put;
	err = mutex_lock_killable(&vdev->igate);
	if (err)
		goto unlock_device;
	err = -EINVAL;
	if (vdev->irq_type != VFIO_PCI_NUM_IRQS)
		goto unlock_igate;
	vfio_pci_zap_and_down_write_memory_lock(vdev);
	err = -EBUSY;
	if (vdev->pm_runtime_engaged)
		goto unlock_memory;

	memcpy(quiet->reset_methods, pdev->reset_methods, sizeof(quiet->reset_methods));
	memset(pdev->reset_methods, 0, sizeof(pdev->reset_methods));
	pci_cfg_access_lock(pdev);
	pci_read_config_word(pdev, PCI_COMMAND, &command);
	quiet->command = command;
	command = (command & ~PCI_COMMAND_MASTER) | PCI_COMMAND_INTX_DISABLE;
	pci_write_config_word(pdev, PCI_COMMAND, command);
	rwsem_release(&vdev->memory_lock.dep_map, _THIS_IP_);
	mutex_release(&vdev->igate.dep_map, _THIS_IP_);
	device_unlock(&pdev->dev);
	return 0;

unlock_memory:
	up_write(&vdev->memory_lock);
unlock_igate:
	mutex_unlock(&vdev->igate);
unlock_device:
	device_unlock(&pdev->dev);
put:
	pm_runtime_put(&pdev->dev);
	return err;
}

/* As above, in reverse. */
void luo_vfio_resume(void *device, const struct luo_vfio_quiet *quiet)
{
	struct vfio_pci_core_device *vdev = device;
	struct pci_dev *pdev = vdev->pdev;

	mutex_acquire(&vdev->igate.dep_map, 0, 1, _THIS_IP_);
	rwsem_acquire(&vdev->memory_lock.dep_map, 0, 1, _THIS_IP_);
	pci_write_config_word(pdev, PCI_COMMAND, quiet->command);
	pci_cfg_access_unlock(pdev);
	memcpy(pdev->reset_methods, quiet->reset_methods, sizeof(pdev->reset_methods));
	up_write(&vdev->memory_lock);
	mutex_unlock(&vdev->igate);
	pm_runtime_put(&pdev->dev);
}

/*
 * A device that came from the previous kernel belongs to the process that retrieves
 * it. Until its session is finished, its character device and its group return EBUSY
 * to others.
 */
struct reservation {
	struct list_head list;
	u64 address;
	/* What is reserved; NULL as long as it is not bound to vfio-pci. */
	struct vfio_pci_core_device *vdev;
};

/* Taken within the lock of a device, and before that of a group. */
static DEFINE_MUTEX(reservations_lock);
static LIST_HEAD(reservations);

/* Files from the previous kernel that are not finished. */
static u64 unfinished;

static int refuse_open(struct inode *inode, struct file *file)
{
	return -EBUSY;
}

static const struct file_operations reserved_fops = {
	.owner = THIS_MODULE,
	.open = refuse_open,
};

static struct reservation *find_reservation(u64 address)
{
	struct reservation *reservation;

	lockdep_assert_held(&reservations_lock);
	list_for_each_entry(reservation, &reservations, list)
		if (reservation->address == address)
			return reservation;
	return NULL;
}

static struct reservation *add_reservation(u64 address)
{
	struct reservation *reservation = kzalloc_obj(*reservation);

	if (reservation) {
		reservation->address = address;
		list_add_tail(&reservation->list, &reservations);
	}
	return reservation;
}

/* Each file of a device, and each of its opens, has a reference; one is VFIO's own. */
static bool is_in_use(struct vfio_pci_core_device *vdev)
{
	return refcount_read(&vdev->vdev.refcount) > 1;
}

/* Opens that are through the old file operations already count as a use. */
static int reserve(struct reservation *reservation, struct vfio_pci_core_device *vdev)
{
	int err = vfio_device_block_group(&vdev->vdev);

	if (err)
		return err;
	WRITE_ONCE(vdev->vdev.cdev.ops, &reserved_fops);
	reservation->vdev = vdev;
	return 0;
}

static void drop_reservation(struct reservation *reservation)
{
	if (reservation->vdev) {
		WRITE_ONCE(reservation->vdev->vdev.cdev.ops, &vfio_device_fops);
		vfio_device_unblock_group(&reservation->vdev->vdev);
	}
	list_del(&reservation->list);
	kfree(reservation);
}

static struct vfio_pci_core_device *bound_device(struct pci_dev *pdev)
{
	device_lock_assert(&pdev->dev);
	if (!pdev->dev.driver || strcmp(pdev->dev.driver->name, "vfio-pci"))
		return NULL;
	return dev_get_drvdata(&pdev->dev);
}

/*
 * Before a device is unbound its reservation ends, for good: the administrator who
 * unbinds it decides what becomes of it.
 */
static int on_driver(struct notifier_block *block, unsigned long action, void *data)
{
	struct pci_dev *pdev = to_pci_dev(data);
	struct vfio_pci_core_device *vdev;
	struct reservation *reservation;

	if (action != BUS_NOTIFY_BOUND_DRIVER && action != BUS_NOTIFY_UNBIND_DRIVER)
		return NOTIFY_DONE;
	guard(mutex)(&reservations_lock);
	reservation = find_reservation(address_of(pdev));
	vdev = reservation ? bound_device(pdev) : NULL;
	if (!vdev)
		return NOTIFY_DONE;
	if (action == BUS_NOTIFY_BOUND_DRIVER) {
		if (reserve(reservation, vdev))
			pci_warn(pdev, "cannot be reserved, its group is in use\n");
	} else if (reservation->vdev == vdev) {
		drop_reservation(reservation);
	}
	return NOTIFY_DONE;
}

static struct notifier_block driver_notifier = { .notifier_call = on_driver };

/* Reserves a device that is bound, or once it will be. */
static int __init reserve_address(u64 address)
{
	u32 segment = address >> 16;
	u8 bus = address >> 8, devfn = address;
	struct pci_dev *pdev = pci_get_domain_bus_and_slot(segment, bus, devfn);
	struct reservation *reservation;

	scoped_guard(mutex, &reservations_lock)
		reservation = find_reservation(address) ?: add_reservation(address);
	if (pdev) {
		device_lock(&pdev->dev);
		on_driver(&driver_notifier, BUS_NOTIFY_BOUND_DRIVER, &pdev->dev);
		device_unlock(&pdev->dev);
		pci_dev_put(pdev);
	}
	if (!reservation)
		return -ENOMEM;
	if (!reservation->vdev)
		pr_notice("%04x:%02x:%02x.%x must be bound to vfio-pci before it is retrieved\n",
			  segment, bus, PCI_SLOT(devfn), PCI_FUNC(devfn));
	return 0;
}

/* What the previous kernel wrote is copied before it is looked at. */
static void __init reserve_all(void)
{
	struct crossing *arrived __free(kfree) = kmalloc_obj(*arrived);
	phys_addr_t start;
	size_t size;
	u64 i;

	if (!arrived || kho_retrieve_subtree(CROSSING_NAME, &start, &size))
		return;
	if (size != sizeof(*arrived) || offset_in_page(start) ||
	    luo_bytes_copy(PHYS_PFN(start), size, 0, arrived, size) ||
	    arrived->magic != CROSSING_MAGIC || arrived->count > CROSSING_MAX) {
		pr_warn("the list of devices that crossed is malformed: no device is reserved\n");
		return;
	}
	luo_bytes_free(PHYS_PFN(start), size);
	unfinished = arrived->count;
	for (i = 0; i < arrived->count; i++)
		if (reserve_address(arrived->address[i]))
			return;
}

static void __init list_crossing(void)
{
	unsigned long pfn;
	void *bytes;

	if (luo_bytes_preserve(sizeof(*crossing), &bytes, &pfn))
		return;
	memset(bytes, 0, sizeof(*crossing));
	if (kho_add_subtree(CROSSING_NAME, bytes, sizeof(*crossing))) {
		luo_bytes_unpreserve(bytes);
		return;
	}
	guard(mutex)(&crossing_lock);
	crossing = bytes;
	crossing->magic = CROSSING_MAGIC;
}

/* Comes after vfio-pci has bound what its parameters name, and before any process. */
static int __init start(void)
{
	if (!liveupdate_enabled())
		return 0;
	list_crossing();
	bus_register_notifier(&pci_bus_type, &driver_notifier);
	reserve_all();
	return 0;
}
late_initcall(start);

static bool is_file_of(struct file *file, struct vfio_device *device)
{
	struct vfio_device_file *df = device_file(file);

	if (df)
		return df->device == device;
#if IS_ENABLED(CONFIG_VFIO_GROUP)
	return vfio_group_from_file(file) == device->group && device->group;
#else
	return false;
#endif
}

/* Looks through the descriptors of all processes: one that crosses in a socket is missed. */
static void find_owner(struct vfio_device *device, struct luo_vfio_owner *owner)
{
	struct task_struct *task;
	struct file *file;
	unsigned int fd;
	bool found;

	guard(rcu)();
	for_each_process(task) {
		for (fd = 0; (file = fget_task_next(task, &fd)); fd++) {
			found = is_file_of(file, device);
			fput(file);
			if (found) {
				owner->pid = task_pid_nr(task);
				get_task_comm(owner->name, task);
				return;
			}
		}
	}
}

static struct vfio_pci_core_device *hold_bound(struct pci_dev *pdev, struct luo_vfio_owner *owner)
{
	struct vfio_pci_core_device *vdev = bound_device(pdev);
	struct reservation *reservation;
	int err = 0;

	if (!vdev)
		return ERR_PTR(-ENODEV);
	if (pdev->is_virtfn || !is_vfio_pci(&vdev->vdev))
		return ERR_PTR(-EOPNOTSUPP);
	guard(mutex)(&reservations_lock);
	if (xa_load(&held, (unsigned long)vdev))
		return ERR_PTR(-EEXIST);
	reservation = find_reservation(address_of(pdev)) ?: add_reservation(address_of(pdev));
	if (!reservation)
		return ERR_PTR(-ENOMEM);
	if (reservation->vdev != vdev)
		err = reserve(reservation, vdev);
	if (!err && is_in_use(vdev))
		err = -EBUSY;
	if (err == -EBUSY)
		find_owner(&vdev->vdev, owner);
	err = err ?: hold(vdev);
	return err ? ERR_PTR(err) : vdev;
}

/*
 * Inlines of PCI. Returns a device that is held and reserved; -ENOENT if there is no such
 * device, -ENODEV if it is not bound, -EOPNOTSUPP if it cannot be preserved, -EEXIST if
 * it is held already. What may pass is waited for: -EAGAIN if the device's lock does not
 * become free, -EBUSY if the @owner does not close it, -EINTR if the task was killed.
 */
void *luo_vfio_find(u32 segment, u8 bus, u8 devfn, struct luo_vfio_owner *owner)
{
	struct pci_dev *pdev = pci_get_domain_bus_and_slot(segment, bus, devfn);
	unsigned long end = jiffies + PATIENCE;
	struct vfio_pci_core_device *vdev;
	int err;

	if (!pdev)
		return ERR_PTR(-ENOENT);
	do {
		err = lock_device(pdev);
		vdev = ERR_PTR(err);
		if (err)
			break;
		vdev = hold_bound(pdev, owner);
		device_unlock(&pdev->dev);
	} while (vdev == ERR_PTR(-EBUSY) && !wait_until(end));
	pci_dev_put(pdev);
	return fatal_signal_pending(current) && IS_ERR(vdev) ? ERR_PTR(-EINTR) : vdev;
}

/* Of a device that was found and is not wanted; the reservation ends with the session. */
void luo_vfio_lose(void *device)
{
	release(device);
}

/*
 * One file from the previous kernel is finished: @device is what was retrieved, or
 * NULL. With the last of them all that is still reserved is released, also where the
 * record was unreadable and @address is LUO_VFIO_NOWHERE.
 */
void luo_vfio_finish(void *device, u64 address)
{
	struct vfio_pci_core_device *vdev = device;
	struct reservation *reservation, *next;
	bool last;

	guard(mutex)(&reservations_lock);
	if (vdev) {
		address = address_of(vdev->pdev);
		/* The file has its own reference. */
		xa_erase(&held, (unsigned long)vdev);
	}
	last = unfinished && !--unfinished;
	list_for_each_entry_safe(reservation, next, &reservations, list) {
		bool wanted = reservation->vdev &&
			      xa_load(&held, (unsigned long)reservation->vdev);

		if (!wanted && (last || reservation->address == address))
			drop_reservation(reservation);
	}
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

	/* open() refuses O_DIRECT for every file without direct I/O. */
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
