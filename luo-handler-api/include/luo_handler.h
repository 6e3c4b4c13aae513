/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * The C form of a handler for live updates: what a plugin exports, and what it is called with.
 *
 * A plugin is a shared object with one symbol, LUO_PLUGIN, a struct luo_plugin. A
 * host opens it, leaves it open until the process ends, and calls its handlers.
 *
 * Version means meaning, size means growth. All structs here belong to
 * LUO_ABI_VERSION; it changes when a field or a callback changes its place or its
 * meaning. Within a version, structs grow at their end: each has its size as it was
 * built, and neither side looks at what the other does not have. An optional callback
 * may be NULL. New structs must be zeroed before they are filled: C does that in an
 * initializer.
 *
 * Functions return 0 or a negative error number of Linux, and questions 1 for yes and 0 for no. A
 * callback must not unwind: C++ catches its exceptions. A host calls for one file at a time, and
 * may call for several files from several threads. Texts are UTF-8 of a given length, without a
 * NUL.
 *
 * What each callback means is in the documentation of luo_handler_api::FileHandler and
 * luo_handler_api::Subsystem, whose methods have these names.
 */
#ifndef LUO_HANDLER_H
#define LUO_HANDLER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LUO_ABI_VERSION 3
#define LUO_COMPATIBLE_LENGTH 48	/* with the terminating NUL; padded with NUL */
#define LUO_PRIVATE_ALIGN_MAX 16
#define LUO_NO_FILE ((intptr_t)-1)

/* Where a handler can live; a plugin's is always one of a process. */
#define LUO_HOSTED 1u
#define LUO_KERNEL 2u

/*
 * What a host offers. Its functions take the host's context first. A service beyond size, or NULL,
 * is one that the host does not have; LUO_HOST_HAS() asks for both. A handle from the previous side
 * is not trusted by the host: an unknown one is -ENOENT.
 */
struct luo_host_ops {
	uint32_t size;
	uint32_t reserved;
	int32_t (*preserve_bytes)(const void *context, const uint8_t *bytes, size_t len,
				  uint64_t *handle);
	int32_t (*bytes_len)(const void *context, uint64_t handle, uint64_t *len);
	int32_t (*read_bytes)(const void *context, uint64_t handle, uint64_t offset,
			      uint8_t *buffer, size_t len);
	void (*release_bytes)(const void *context, uint64_t handle);
	int32_t (*preserve_file)(const void *context, intptr_t file, uint64_t *handle);
	int32_t (*take_file)(const void *context, uint64_t handle, intptr_t *file);
	void (*release_file)(const void *context, uint64_t handle);
	void (*explain)(const void *context, const uint8_t *reason, size_t len);
};

struct luo_host {
	const struct luo_host_ops *ops;
	const void *context;
};

#define LUO_HOST_HAS(host, service)						\
	((host)->ops->size >= offsetof(struct luo_host_ops, service) +		\
			      sizeof((host)->ops->service) &&			\
	 (host)->ops->service)

/* Takes pairs of a key and a value; see luo_handler_api::Pairs. */
struct luo_pairs {
	void (*put)(void *context, const uint8_t *key, size_t key_len, const uint8_t *value,
		    size_t value_len);
	void *context;
};

/*
 * What handlers and subsystems begin with. The first three fields stay where they are in every
 * version. The host provides memory for the private state, of this size and alignment (a power of
 * two up to LUO_PRIVATE_ALIGN_MAX, also for no bytes): prepare fills it if it returns 0,
 * drop_private ends it, exactly once.
 */
struct luo_ops_header {
	uint32_t abi_version;		/* LUO_ABI_VERSION */
	uint32_t size;			/* of the whole struct */
	char compatible[LUO_COMPATIBLE_LENGTH];
	uint32_t hosts;			/* LUO_HOSTED, LUO_KERNEL or both */
	uint32_t private_size;
	uint32_t private_align;
	uint32_t needed_by_count;	/* of a subsystem; 0 otherwise */
	const char *origin;		/* what the handler comes from, for people; not empty */
	size_t origin_len;
	const void *context;		/* the first argument of each callback */
};

/*
 * A handler. A file is a descriptor, lent for the call. retrieve gives an open one
 * away. For retrieved, 0 means that nobody asked for the file, a negative error
 * number that it could not be rebuilt, 1 that it was: file is open then, and
 * LUO_NO_FILE otherwise.
 */
struct luo_handler_ops {
	struct luo_ops_header header;
	int32_t (*can_preserve)(const void *context, intptr_t file);
	int32_t (*file_id)(const void *context, intptr_t file, uint64_t *id);	/* optional */
	int32_t (*prepare)(const void *context, intptr_t file, const struct luo_host *host,
			   void *private_state, uint64_t *data);
	int32_t (*freeze)(const void *context, intptr_t file, const struct luo_host *host,
			  void *private_state, uint64_t *data);			/* optional */
	int32_t (*unfreeze)(const void *context, intptr_t file, const struct luo_host *host,
			    void *private_state, uint64_t data);		/* optional */
	int32_t (*cancel)(const void *context, intptr_t file, const struct luo_host *host,
			  void *private_state, uint64_t data);
	int32_t (*drop_private)(void *private_state);
	int32_t (*retrieve)(const void *context, const struct luo_host *host, uint64_t data,
			    intptr_t *file);
	int32_t (*can_finish)(const void *context, const struct luo_host *host, uint64_t data,
			      intptr_t file, int32_t retrieved);		/* optional */
	int32_t (*finish)(const void *context, const struct luo_host *host, uint64_t data,
			  intptr_t file, int32_t retrieved);
	/* The first size of version 3 ends here; what follows is optional. */
	int32_t (*describe)(const void *context, const struct luo_host *host, uint64_t data,
			    const struct luo_pairs *pairs);
	int32_t (*init)(const void *context, const struct luo_host *host);
};

/* A subsystem. */
struct luo_subsystem_ops {
	struct luo_ops_header header;
	/* The handlers whose files need it, needed_by_count of them; every one if that is 0. */
	const char (*needed_by)[LUO_COMPATIBLE_LENGTH];
	int32_t (*prepare)(const void *context, const struct luo_host *host, void *private_state,
			   uint64_t *data);
	int32_t (*freeze)(const void *context, const struct luo_host *host, void *private_state,
			  uint64_t *data);					/* optional */
	int32_t (*unfreeze)(const void *context, const struct luo_host *host, void *private_state,
			    uint64_t data);					/* optional */
	int32_t (*cancel)(const void *context, const struct luo_host *host, void *private_state,
			  uint64_t data);
	int32_t (*drop_private)(void *private_state);
	int32_t (*retrieve)(const void *context, const struct luo_host *host, uint64_t data);
	int32_t (*can_finish)(const void *context, const struct luo_host *host,
			      uint64_t data);					/* optional */
	int32_t (*finish)(const void *context, const struct luo_host *host, uint64_t data,
			  int32_t retrieved);
	/* The first size of version 3 ends here; what follows is optional. */
	int32_t (*describe)(const void *context, const struct luo_host *host, uint64_t data,
			    const struct luo_pairs *pairs);
	int32_t (*init)(const void *context, const struct luo_host *host);
};

/* What a plugin exports, as LUO_PLUGIN. */
struct luo_plugin {
	uint32_t abi_version;		/* LUO_ABI_VERSION */
	uint32_t size;			/* of this struct */
	const struct luo_handler_ops *const *handlers;
	size_t count;
	/* The first size of version 3 ends here. */
	const struct luo_subsystem_ops *const *subsystems;
	size_t subsystem_count;
};

extern const struct luo_plugin LUO_PLUGIN;

#ifdef __cplusplus
}
#endif

#endif /* LUO_HANDLER_H */
