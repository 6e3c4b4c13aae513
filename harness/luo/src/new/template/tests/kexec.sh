#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
# `luo lab test --handler . --program tests/kexec.sh` runs it in a guest, with `before` before a
# kexec and with `after` after it; then many times with `before` and the name of a session, to have
# records to forge.
set -e
session=${2:-sample}
case $1 in
before)
    exec 3>>/dev/full
    luo session preserve --background "$session" 1=$$:3
    ;;
after)
    luo session retrieve "$session" 1=:3 -- sh -ec '
        test "$(readlink /proc/self/fd/3)" = /dev/full
        grep "^flags:.*2001$" /proc/self/fdinfo/3'
    ;;
esac
