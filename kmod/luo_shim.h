/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the module asks of C. The Rust side is in shim.rs. What only one handler needs
 * is in that handler's crate.
 */
#ifndef _LUO_SHIM_H
#define _LUO_SHIM_H

#include <linux/mutex.h>
#include <linux/types.h>

struct file;

struct liveupdate_flb;

/* luo_shim.c: what was linked in */
const char *luo_disabled(void);
const char *luo_switched_on(void);
void luo_handlers_section(const void ***start, const void ***stop);
void luo_subsystems_section(const void ***start, const void ***stop);

/* luo_sessions.c: a session, or, with a compatible, one of its files */
struct luo_session_item {
	const char *session;
	const char *compatible;
	const char *name;	/* of the open file; NULL if there is none */
	u64 token;
	u64 data;
	u64 size;
	u64 inode;
	s32 status;		/* as retrieve_status of struct liveupdate_file_op_args */
	bool session_retrieved;
	bool busy;		/* the session is at work, its files are not shown */
	bool stand_in;		/* this kernel lacks the handler */
};

int luo_show_sessions(bool incoming, void (*show)(const struct luo_session_item *, void *),
		      void *context);

/* luo_shim.c: mainline's subsystems */
void luo_flb_did_not_come(struct liveupdate_flb *flb);

/* luo_shim.c: bytes that cross */
int luo_bytes_preserve(size_t len, void **bytes, unsigned long *pfn);
void *luo_bytes_outgoing(unsigned long pfn, size_t len);
bool luo_bytes_are_incoming(unsigned long pfn, size_t len);
int luo_bytes_copy(unsigned long pfn, size_t len, size_t offset, void *buffer, size_t count);
void luo_bytes_unpreserve(void *bytes);
void luo_bytes_free(unsigned long pfn, size_t len);
struct mutex *luo_incoming(unsigned long pfn);
int luo_preserved_order(unsigned long pfn);

/* luo_shim.c: checksums */
u32 luo_crc32c(u32 so_far, const void *bytes, size_t len);

#endif /* _LUO_SHIM_H */
