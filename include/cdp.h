/* cdp.h: continuous data protection, the C library.
 *
 * Made from cdp-ffi/src/lib.rs by cbindgen; do not edit. To make it anew:
 *     CDP_REWRITE=1 cargo test -p cdp-ffi
 *
 * Every name begins with cdp_ or CDP_. What can fail returns a cdp_status. Texts are UTF-8, end with a NUL and belong to the
 * library unless a function says otherwise. All functions may be called from any thread.
 */

#ifndef CDP_H
#define CDP_H

#include <stdint.h>

/*
 Counts the incompatible changes of this interface. A caller compares it with `CDP_ABI_VERSION` of the header that it was
 compiled with, and does not go on if they differ.
 */
#define CDP_ABI_VERSION 1

/*
 How a call ended. Values that this header does not name may come from a newer library: they are failures.
 */
typedef int32_t cdp_status;

/*
 Done.
 */
#define CDP_OK 0

/*
 Failed, for a reason outside of the library's rules: a file, a disk, a network.
 */
#define CDP_FAILED 1

/*
 The call itself is wrong: an argument that cannot be.
 */
#define CDP_USAGE 2

/*
 The moment asked for is not restorable.
 */
#define CDP_NOT_RESTORABLE 3

/*
 State or ownership does not allow it now.
 */
#define CDP_REFUSED 4

/*
 Stored bytes are not what was stored.
 */
#define CDP_DAMAGE 5

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 The library's own `CDP_ABI_VERSION`.
 */
uint32_t cdp_abi_version(void);

/*
 The library's version, such as `0.0.1`. Never NULL, lives as long as the program.
 */
const char *cdp_version(void);

/*
 A status in words, for people: one short sentence without a full stop. Never NULL, lives as long as the program.
 */
const char *cdp_status_text(cdp_status status);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* CDP_H */
