// SPDX-License-Identifier: GPL-2.0-only
/*
 * Notes in the kernel's image, from which `luo check` learns before a jump what this
 * kernel can take. A handler in Rust has one, of type 2, from its macro,
 * register_handler!. The running kernel shows all of them in /sys/kernel/notes.
 */
#include <linux/elfnote.h>
#include <linux/kconfig.h>
#include <linux/kho/abi/kexec_handover.h>
#include <linux/kho/abi/luo.h>
#include <linux/kho/abi/memfd.h>
#include <linux/stringify.h>

#define LUO_NOTE_ABI		1	/* lines of key=value */
#define LUO_NOTE_OWN_HANDLER	3	/* the compatible of a handler of the kernel itself */

ELFNOTE32("luo-handlers", LUO_NOTE_ABI,
	  "luo=" LUO_ABI_COMPATIBLE "\n"
	  "kho=" KHO_FDT_COMPATIBLE "\n"
	  "stand_ins=1\n"
	  "kho_enabled=" __stringify(IS_ENABLED(CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT)) "\n");

/* The kernel's own handler has no note. */
#ifdef CONFIG_LIVEUPDATE_MEMFD
ELFNOTE32("luo-handlers", LUO_NOTE_OWN_HANDLER, MEMFD_LUO_FH_COMPATIBLE);
#endif
