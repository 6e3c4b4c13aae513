#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
# aarch64.sh PROGRAM [ARGUMENT...]: runs a program for arm64 under qemu-user, and what it executes.
# The kernel has to start it by itself, so qemu is registered in a user namespace; since Linux 6.7
# each of them has binary formats of its own, and nothing of the machine's is changed.
set -eu

if [ -z "${LUO_IN_NAMESPACE:-}" ]; then
	qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64) || {
		echo "qemu-aarch64 is missing: install qemu-user-static, or another build of QEMU's" \
			"user mode" >&2
		exit 1
	}
	export LUO_IN_NAMESPACE=1 qemu
	exec unshare --user --map-root-user --mount sh "$0" "$@"
fi

formats=/proc/sys/fs/binfmt_misc
# An ELF file of 64 bits, little endian, that is executable or position independent, for EM_AARCH64.
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
mount -t binfmt_misc none "$formats"
# F: opened now, so that it is there in every other namespace as well.
printf ':luo-aarch64:M::%s:%s:%s:F' "$magic" "$mask" "$qemu" > "$formats/register"
unset LUO_IN_NAMESPACE qemu
exec "$@"
