#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# matrix.sh [CACHE]: compiles what `luo integrate` put into the lab's kernel tree, with W=1, in the
# lab's build root: as the lab configures it, then without each handler, and without each option that
# the handlers' C has to do without. Only our objects, so that it is quick; `luo lab build` comes first,
# and it takes root. Reports each line of the matrix, and exits 1 after a warning or an error.
set -eu

cache=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/luo-lab}
tree=$(echo "$cache"/source-*/linux)
out=$(dirname "$tree")/build-matrix
base=$(dirname "$tree")/build-release/.config
ours=drivers/luo_handlers
options='TRANSPARENT_HUGEPAGE MEMCG NUMA SWAP HUGETLBFS DEVPORT VFIO_GROUP'
handlers=$(sed -n 's/^config \(LUO_HANDLER_.*\)/\1/p' "$tree/$ours"/*/kmod/Kconfig)
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# In a mount namespace of its own, as the lab enters its build root.
kernel_make() {
    unshare --mount --propagation private sh -ec '
        cache=$1 root=$2 tree=$3
        shift 3
        mkdir -p "$root$cache"
        mount --bind "$cache" "$root$cache"
        mount --rbind /proc "$root/proc"
        mount --rbind /dev "$root/dev"
        exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C \
            nice make -s -C "$tree" "$@"' \
        sh "$cache" "$cache/toolchain-trixie/root" "$tree" O="$out" "$@" </dev/null
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
    if ! kernel_make -j"$(nproc)" W=1 "$ours/" >"$log" 2>&1 || grep -q "$ours.*warning:\|^warning" "$log"; then
        cat "$log"
        echo "$1: failed"
        exit 1
    fi
    echo "$1: compiles"
}

mkdir -p "$out"
compile everything
for option in $handlers $options; do
    compile "without $option" "$option"
done
