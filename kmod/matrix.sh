#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# matrix.sh TREE CONFIG OUT [OPTION...]: compiles what `luo integrate` put into a kernel tree, with
# W=1: with the configuration CONFIG, then without each handler, and without each option that the
# handlers' C has to do without; or without those options that are named. Only our objects and those
# of patched files go into OUT, so that it is quick. ROOT=DIR, as root, takes the compilers from a
# build root such as the lab's, toolchain-*/root in its cache. Reports each line of the matrix, and
# exits 1 after an error, or a warning of ours.
set -eu

[ $# -ge 3 ] || { echo "usage: [ROOT=DIR] matrix.sh TREE CONFIG OUT [OPTION...]" >&2; exit 2; }
mkdir -p "$3"
tree=$(realpath "$1") base=$(realpath "$2") out=$(realpath "$3")
ours=drivers/luo_handlers
handlers=$(sed -n 's/^config \(LUO_HANDLER_.*\)/\1/p' "$tree/$ours"/*/kmod/Kconfig)
shift 3
[ $# -gt 0 ] || set -- $handlers TRANSPARENT_HUGEPAGE MEMCG NUMA SWAP HUGETLBFS DEVPORT VFIO_GROUP
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# With ROOT, in a mount namespace of its own, in which both trees are where they are outside.
kernel_make() {
    if [ -z "${ROOT:-}" ]; then
        nice make -s -C "$tree" O="$out" "$@" </dev/null
        return
    fi
    unshare --mount --propagation private sh -ec '
        root=$1 tree=$2 out=$3
        shift 3
        for directory in "$tree" "$out"; do
            mkdir -p "$root$directory"
            mount --bind "$directory" "$root$directory"
        done
        mount --rbind /proc "$root/proc"
        mount --rbind /dev "$root/dev"
        exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C \
            nice make -s -C "$tree" O="$out" "$@"' \
        sh "$ROOT" "$tree" "$out" "$@" </dev/null
}

# compile NAME [OPTION]: without the option, if there is one.
compile() {
    cp "$base" "$out/.config"
    [ $# -lt 2 ] || "$tree/scripts/config" --file "$out/.config" --disable "$2"
    kernel_make olddefconfig
    if [ $# -ge 2 ] && grep -q "^CONFIG_$2=" "$out/.config"; then
        echo "$1: not compiled, something selects it"
        return
    fi
    # What the kernel itself has to be ready for, without our warnings in between.
    kernel_make -j"$(nproc)" prepare >"$log" 2>&1 || { cat "$log"; exit 1; }
    patched="mm/shmem.o mm/memfd.o kernel/liveupdate/"
    ! grep -q ^CONFIG_HUGETLBFS=y "$out/.config" || patched="$patched mm/hugetlb.o fs/hugetlbfs/"
    if ! kernel_make -j"$(nproc)" W=1 "$ours/" $patched >"$log" 2>&1 ||
        grep -q "$ours.*warning:\|^warning" "$log"; then
        cat "$log"
        echo "$1: failed"
        exit 1
    fi
    echo "$1: compiles"
}

compile everything
for option; do
    compile "without $option" "$option"
done
