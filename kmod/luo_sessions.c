// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the module knows of sessions (sessions.patch has mainline's part): a stand-in
 * for each handler that is missing, so that a file of it costs nobody else anything,
 * and what all sessions hold, for debugfs.
 *
 * A stand-in takes no files and touches nothing of those that came in: what they
 * preserve stays reserved. As soon as their handler is registered, it takes them over.
 * They do not cross another kexec: to preserve memory again, one would have to know
 * which memory it is, and only the handler can read that.
 */
#define pr_fmt(fmt) "luo_handlers: " fmt

#include <linux/fs.h>
#include <linux/list.h>
#include <linux/liveupdate.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "../../kernel/liveupdate/luo_internal.h"
#include "luo_shim.h"

/* What stood before the vendor was put before our compatibles. */
#define VENDOR "luo-handlers,"

/* Nobody has so many kinds of files. All that are more share the last stand-in. */
#define STAND_INS_MAX 32

struct stand_in {
	struct liveupdate_file_handler handler;
	struct list_head others;
};

static LIST_HEAD(stand_ins);
static unsigned int stand_in_count;
static DEFINE_MUTEX(stand_ins_lock);

static bool takes_nothing(struct liveupdate_file_handler *handler, struct file *file)
{
	return false;
}

static int cannot_preserve(struct liveupdate_file_op_args *args)
{
	return -EOPNOTSUPP;
}

static void was_not_preserved(struct liveupdate_file_op_args *args)
{
}

static int cannot_retrieve(struct liveupdate_file_op_args *args)
{
	pr_warn_ratelimited("not retrieved: this kernel has no handler for %*pE\n",
			    (int)strlen(args->handler->compatible), args->handler->compatible);
	return -ENOENT;
}

static void leave_alone(struct liveupdate_file_op_args *args)
{
	pr_warn_ratelimited("finished without a handler for %*pE: its memory stays reserved\n",
			    (int)strlen(args->handler->compatible), args->handler->compatible);
}

static const struct liveupdate_file_ops stand_in_ops = {
	.can_preserve = takes_nothing,
	.preserve = cannot_preserve,
	.unpreserve = was_not_preserved,
	.retrieve = cannot_retrieve,
	.finish = leave_alone,
};

bool luo_is_stand_in(const struct liveupdate_file_handler *fh)
{
	return fh->ops == &stand_in_ops;
}

static struct stand_in *make_stand_in(const char *compatible)
{
	struct stand_in *made = kzalloc_obj(*made);

	if (!made)
		return NULL;
	made->handler.ops = &stand_in_ops;
	/* Const for those that declare a handler. */
	strscpy((char *)made->handler.compatible, compatible, sizeof(made->handler.compatible));
	/* It is in no list of mainline's, so that its handler can be registered. */
	INIT_LIST_HEAD(&ACCESS_PRIVATE(&made->handler, list));
	INIT_LIST_HEAD(&ACCESS_PRIVATE(&made->handler, flb_list));
	list_add_tail(&made->others, &stand_ins);
	stand_in_count++;
	pr_warn("no handler for %*pE: its files are not retrieved unless one is registered\n",
		(int)strlen(made->handler.compatible), made->handler.compatible);
	return made;
}

/* The text comes from the previous kernel: it may be anything, and need not end. */
struct liveupdate_file_handler *luo_stand_in(const char *compatible)
{
	char name[LIVEUPDATE_HNDL_COMPAT_LENGTH];
	struct stand_in *stand_in;

	strscpy(name, compatible, sizeof(name));
	guard(mutex)(&stand_ins_lock);
	list_for_each_entry(stand_in, &stand_ins, others) {
		if (!strcmp(stand_in->handler.compatible, name))
			return &stand_in->handler;
	}
	if (stand_in_count == STAND_INS_MAX)
		return &list_last_entry(&stand_ins, struct stand_in, others)->handler;
	/* No handler has the name of the last one. */
	stand_in = make_stand_in(stand_in_count < STAND_INS_MAX - 1 ? name : "(others)");
	return stand_in ? &stand_in->handler : NULL;
}

/* Writes the present name of a compatible that may be a former one of ours. */
const char *luo_present_name(const char *compatible, char *name)
{
	size_t length = strnlen(compatible, LIVEUPDATE_HNDL_COMPAT_LENGTH);

	if (!length || length + sizeof(VENDOR) > LIVEUPDATE_HNDL_COMPAT_LENGTH ||
	    memchr(compatible, ',', length))
		return NULL;
	memcpy(name, VENDOR, sizeof(VENDOR) - 1);
	memcpy(name + sizeof(VENDOR) - 1, compatible, length);
	name[sizeof(VENDOR) - 1 + length] = '\0';
	return name;
}

static_assert(sizeof(struct luo_session_item) == 64); /* as in shim.rs */

struct showing {
	void (*show)(const struct luo_session_item *item, void *context);
	void *context;
};

static void show_one(const struct luo_shown *shown, void *context)
{
	const struct showing *showing = context;
	char name[64] = "";
	struct luo_session_item item = {
		.session = shown->session->name,
		.session_retrieved = shown->session->retrieved,
		.busy = shown->busy,
		.token = shown->token,
		.data = shown->data,
		.status = shown->retrieve_status,
	};

	if (shown->handler) {
		item.compatible = shown->handler->compatible;
		item.stand_in = luo_is_stand_in(shown->handler);
	}
	if (shown->file) {
		snprintf(name, sizeof(name), "%pD", shown->file);
		item.name = name;
		item.size = i_size_read(file_inode(shown->file));
		item.inode = file_inode(shown->file)->i_ino;
	}
	showing->show(&item, showing->context);
}

/* Structs of the kernel without a binding, and locks. */
int luo_show_sessions(bool incoming, void (*show)(const struct luo_session_item *, void *),
		      void *context)
{
	struct showing showing = { .show = show, .context = context };

	return luo_sessions_show(incoming, show_one, &showing);
}
