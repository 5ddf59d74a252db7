/* The smallest program on the library: is it the one that we were compiled for?
 *
 *     cargo build --release -p cdp-ffi
 *     cc -std=c99 -I include -o version examples/c/version.c target/release/libcdp.a -lpthread -ldl -lm
 */
#include <cdp.h>
#include <stdio.h>

int main(void)
{
    if (cdp_abi_version() != CDP_ABI_VERSION) {
        fprintf(stderr, "compiled for interface %u, the library has %u\n", (unsigned)CDP_ABI_VERSION,
                (unsigned)cdp_abi_version());
        return 1;
    }
    printf("cdp %s (interface %u): %s\n", cdp_version(), (unsigned)cdp_abi_version(), cdp_status_text(CDP_OK));
    return 0;
}
