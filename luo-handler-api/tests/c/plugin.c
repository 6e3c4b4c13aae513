/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * A plugin in C: it preserves pipes' read ends by letting the host hold them, with a
 * record that holds how much was in the pipe. Built as it is, against the previous
 * layout (PREVIOUS_LAYOUT: no describe and no init, nothing of subsystems) and
 * against a later one (LATER_LAYOUT: callbacks that this version does not have).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "luo_handler.h"

#define ENDS_BEFORE(type, field) offsetof(type, field)

struct state {
	uint64_t file;
};

static const char context;

static void explain(const struct luo_host *host, const char *reason)
{
	if (LUO_HOST_HAS(host, explain))
		host->ops->explain(host->context, (const uint8_t *)reason, strlen(reason));
}

static int32_t can_preserve(const void *ctx, intptr_t file)
{
	struct stat stat;

	if (ctx != &context)
		return -EFAULT;
	return !fstat((int)file, &stat) && S_ISFIFO(stat.st_mode);
}

struct record {
	uint64_t file;
	uint64_t bytes;
};

static int32_t prepare(const void *ctx, intptr_t file, const struct luo_host *host,
		       void *private_state, uint64_t *data)
{
	struct state *state = private_state;
	struct record record;
	int32_t err;
	int bytes;

	(void)ctx;
	if (ioctl((int)file, FIONREAD, &bytes))
		return -errno;
	if (bytes > 4096) {
		explain(host, "there is too much in the pipe");
		return -EFBIG;
	}
	err = host->ops->preserve_file(host->context, file, &state->file);
	if (err)
		return err;
	record.file = state->file;
	record.bytes = (uint64_t)bytes;
	err = host->ops->preserve_bytes(host->context, (const uint8_t *)&record, sizeof(record),
					data);
	if (err)
		host->ops->release_file(host->context, state->file);
	return err;
}

static int32_t cancel(const void *ctx, intptr_t file, const struct luo_host *host,
		      void *private_state, uint64_t data)
{
	struct state *state = private_state;

	(void)ctx, (void)file;
	host->ops->release_file(host->context, state->file);
	host->ops->release_bytes(host->context, data);
	return 0;
}

static int32_t drop_private(void *private_state)
{
	memset(private_state, 0, sizeof(struct state));
	return 0;
}

static int32_t load(const struct luo_host *host, uint64_t data, struct record *record)
{
	uint64_t len;
	int32_t err = host->ops->bytes_len(host->context, data, &len);

	if (err)
		return err;
	if (len != sizeof(*record))
		return -EINVAL;
	return host->ops->read_bytes(host->context, data, 0, (uint8_t *)record, sizeof(*record));
}

static int32_t retrieve(const void *ctx, const struct luo_host *host, uint64_t data, intptr_t *file)
{
	struct record record;
	int32_t err = load(host, data, &record);

	(void)ctx;
	return err ? err : host->ops->take_file(host->context, record.file, file);
}

static int32_t finish(const void *ctx, const struct luo_host *host, uint64_t data, intptr_t file,
		      int32_t retrieved)
{
	struct record record;

	(void)ctx, (void)file;
	if (retrieved <= 0 && !load(host, data, &record))
		host->ops->release_file(host->context, record.file);
	host->ops->release_bytes(host->context, data);
	return 0;
}

#ifndef PREVIOUS_LAYOUT
static int32_t describe(const void *ctx, const struct luo_host *host, uint64_t data,
			const struct luo_pairs *pairs)
{
	struct record record;
	char text[24];
	int32_t err = load(host, data, &record);
	int length;

	(void)ctx;
	if (err)
		return err;
	length = snprintf(text, sizeof(text), "%llu", (unsigned long long)record.bytes);
	pairs->put(pairs->context, (const uint8_t *)"waiting_bytes", 13, (const uint8_t *)text,
		   (size_t)length);
	return 0;
}

static int32_t init(const void *ctx, const struct luo_host *host)
{
	(void)ctx, (void)host;
	return 0;
}
#endif

struct later_ops {
	struct luo_handler_ops ops;
	int32_t (*unheard_of)(void);
};

#ifdef LATER_LAYOUT
static int32_t unheard_of(void)
{
	return -ENOSYS;
}
#endif

static const struct later_ops pipe_ops = {
	.ops = {
		.header = {
			.abi_version = LUO_ABI_VERSION,
#if defined(PREVIOUS_LAYOUT)
			.size = ENDS_BEFORE(struct luo_handler_ops, describe),
#elif defined(LATER_LAYOUT)
			.size = sizeof(struct later_ops),
#else
			.size = sizeof(struct luo_handler_ops),
#endif
			.compatible = "c-pipe-v1",
			.hosts = LUO_HOSTED,
			.private_size = sizeof(struct state),
			.private_align = _Alignof(struct state),
			.origin = "plugin.c",
			.origin_len = sizeof("plugin.c") - 1,
			.context = &context,
		},
		.can_preserve = can_preserve,
		.prepare = prepare,
		.cancel = cancel,
		.drop_private = drop_private,
		.retrieve = retrieve,
		.finish = finish,
#if !defined(PREVIOUS_LAYOUT)
		.describe = describe,
		.init = init,
#else
		/* What comes after a struct of the previous layout is not part of it. */
		.describe = (void *)0x1,
		.init = (void *)0x1,
#endif
	},
#ifdef LATER_LAYOUT
	.unheard_of = unheard_of,
#endif
};

#ifndef PREVIOUS_LAYOUT
static int32_t clock_prepare(const void *ctx, const struct luo_host *host, void *private_state,
			     uint64_t *data)
{
	(void)ctx, (void)host, (void)private_state;
	*data = 12;
	return 0;
}

static int32_t clock_cancel(const void *ctx, const struct luo_host *host, void *private_state,
			    uint64_t data)
{
	(void)ctx, (void)host, (void)private_state, (void)data;
	return 0;
}

static int32_t clock_drop(void *private_state)
{
	(void)private_state;
	return 0;
}

static int32_t clock_retrieve(const void *ctx, const struct luo_host *host, uint64_t data)
{
	(void)ctx, (void)host;
	return data == 12 ? 0 : -EINVAL;
}

static int32_t clock_finish(const void *ctx, const struct luo_host *host, uint64_t data,
			    int32_t retrieved)
{
	(void)ctx, (void)host, (void)data, (void)retrieved;
	return 0;
}

static const char needing[][LUO_COMPATIBLE_LENGTH] = { "c-pipe-v1" };

static const struct luo_subsystem_ops clock_ops = {
	.header = {
		.abi_version = LUO_ABI_VERSION,
		.size = sizeof(struct luo_subsystem_ops),
		.compatible = "c-clock-v1",
		.hosts = LUO_HOSTED,
		.private_align = 1,
		.needed_by_count = 1,
		.origin = "plugin.c",
		.origin_len = sizeof("plugin.c") - 1,
		.context = &context,
	},
	.needed_by = needing,
	.prepare = clock_prepare,
	.cancel = clock_cancel,
	.drop_private = clock_drop,
	.retrieve = clock_retrieve,
	.finish = clock_finish,
};

static const struct luo_subsystem_ops *const subsystems[] = { &clock_ops };
#endif

static const struct luo_handler_ops *const handlers[] = { &pipe_ops.ops };

const struct luo_plugin LUO_PLUGIN = {
	.abi_version = LUO_ABI_VERSION,
	.handlers = handlers,
	.count = 1,
#ifdef PREVIOUS_LAYOUT
	.size = ENDS_BEFORE(struct luo_plugin, subsystems),
	.subsystems = (void *)0x1,
	.subsystem_count = 1,
#else
	.size = sizeof(struct luo_plugin),
	.subsystems = subsystems,
	.subsystem_count = 1,
#endif
};
