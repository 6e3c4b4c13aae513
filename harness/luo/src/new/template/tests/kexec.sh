#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
# `luo lab test --handler . --program tests/kexec.sh` runs it in a guest: with `before` before a
# kexec, after which what it preserved is forged, and again before another one; with `after` then.
set -e
case $1 in
before)
    exec 3>>/dev/full
    luo session preserve --background sample 1=$$:3
    ;;
after)
    luo session retrieve sample 1=:3 -- sh -ec '
        test "$(readlink /proc/self/fd/3)" = /dev/full
        grep "^flags:.*2001$" /proc/self/fdinfo/3'
    ;;
esac
