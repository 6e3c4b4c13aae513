/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the dispatch asks of C, and what C asks of the dispatch. The Rust side is in
 * shim.rs. What only one handler needs is in that handler's crate.
 */
#ifndef _LUO_SHIM_H
#define _LUO_SHIM_H

#include <linux/mutex.h>
#include <linux/types.h>

struct file;

/* Handlers that can be registered: each has a get_id() of its own, see there. */
#define LUO_MAX_HANDLERS 16

/* luo_shim.c: registration */
const char *luo_disabled(void);
bool luo_is_disabled(const char *name);
void luo_section(const void ***start, const void ***stop);
int luo_register(const char *compatible, const void *handler);

/* luo_shim.c: bytes that cross */
int luo_bytes_preserve(size_t len, void **bytes, unsigned long *pfn);
void *luo_bytes_outgoing(unsigned long pfn, size_t len);
bool luo_bytes_are_incoming(unsigned long pfn, size_t len);
int luo_bytes_copy(unsigned long pfn, size_t len, size_t offset, void *buffer, size_t count);
void luo_bytes_unpreserve(void *bytes);
void luo_bytes_free(unsigned long pfn, size_t len);
extern struct mutex luo_incoming;
int luo_kept_order(unsigned long pfn);

/* luo_shim.c: checksums */
u32 luo_crc32c(u32 so_far, const void *bytes, size_t len);

/* luo_handlers.rs: one for each op of mainline */
bool luo_can_preserve(const void *handler, struct file *file);
unsigned long luo_get_id(const void *handler, struct file *file);
int luo_preserve(const void *handler, struct file *file, u64 *data, void **private);
int luo_freeze(const void *handler, struct file *file, u64 *data, void *private);
void luo_unfreeze(const void *handler, struct file *file, u64 data, void *private);
void luo_unpreserve(const void *handler, struct file *file, u64 data, void *private);
int luo_retrieve(const void *handler, u64 data, struct file **file);
bool luo_can_finish(const void *handler, struct file *file, u64 data, int status);
void luo_finish(const void *handler, struct file *file, u64 data, int status);

#endif /* _LUO_SHIM_H */
