/*
 * IP in IP (RFC 2003; of IPv6 RFC 4213) for kernels without ipip and sit: what leaves by the device, and what
 * comes in by the uplink.
 *
 *   encap   on the device's way out: an IPv4 header before the packet, which then leaves by the uplink as the
 *           node's own would: route and neighbour are the kernel's
 *   decap   on the uplink's way in: the outer header of what another node sent to this one comes off, and the
 *           packet goes on as received by the device
 *
 * The outer header is the one the kernel's own devices write by default: TTL of the packet, Don't Fragment,
 * its ECN bits (RFC 6040, 4.1). Segments that are still one buffer stay one.
 *
 * Maps are written by kernel/ipip/, which has the same layouts. An address has 16 bytes; IPv4 is mapped into
 * them (RFC 4291, 2.5.5.2).
 */
#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))

static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const load)(void *skb, __u32 at, void *to, __u32 bytes) = (void *)BPF_FUNC_skb_load_bytes;
static long (*const store)(void *skb, __u32 at, const void *from, __u32 bytes, __u64 flags) =
    (void *)BPF_FUNC_skb_store_bytes;
static long (*const adjust_room)(void *skb, __s32 bytes, __u32 mode, __u64 flags) =
    (void *)BPF_FUNC_skb_adjust_room;
static __s64 (*const csum_diff)(void *from, __u32 from_bytes, void *to, __u32 to_bytes, __u32 seed) =
    (void *)BPF_FUNC_csum_diff;
static long (*const redirect)(__u32 link, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const redirect_neigh)(__u32 link, void *params, int bytes, __u64 flags) =
    (void *)BPF_FUNC_redirect_neigh;

#define BE16(x) __builtin_bswap16(x)

enum { NEXT = -1, DROP = 2, ETHERNET = 14, OUTER = 20, IPIP = 4, SIT = 41, IPV4 = 0x0800, IPV6 = 0x86DD };
/* linux/bpf.h; Debian's are older than the last two. */
enum { ROOM_MAC = 1, FIXED_GSO = 1, ENCAP_IPV4 = 2, DECAP_IPV4 = 1 << 7, DECAP_IPV6 = 1 << 8, TO_INGRESS = 1 };

struct ethernet { __u8 to[6]; __u8 from[6]; __u16 protocol; };
struct ipv4 {
    __u8 version; __u8 tos; __u16 length; __u16 id; __u16 fragment;
    __u8 ttl; __u8 protocol; __u16 checksum; __u32 from; __u32 to;
};
struct ipv6 { __u8 head[8]; __u32 from[4]; __u32 to[4]; };
struct prefix { __u32 bits; __u32 word[4]; };
struct settings { __u32 local; __u32 uplink; __u32 device; __u8 mac[6]; __u16 none; };

/* The loader puts the maps in place of these names. */
extern char settings[], remotes[], senders[];

SEC("tc/encap") int encap(struct __sk_buff *skb)
{
    struct ipv4 outer = {.version = 0x45, .fragment = BE16(0x4000), .length = BE16(skb->len - ETHERNET + OUTER)};
    struct prefix to = {.bits = 128};
    __u32 zero = 0;
    struct settings *own = map_lookup(settings, &zero);
    __u8 ecn;

    if (!own)
        return DROP;
    if (skb->protocol == BE16(IPV4)) {
        struct ipv4 inner;
        if (load(skb, ETHERNET, &inner, sizeof inner))
            return DROP;
        to.word[2] = __builtin_bswap32(0xFFFF);
        to.word[3] = inner.to;
        outer.ttl = inner.ttl;
        outer.protocol = IPIP;
        ecn = inner.tos & 3;
    } else if (skb->protocol == BE16(IPV6)) {
        struct ipv6 inner;
        if (load(skb, ETHERNET, &inner, sizeof inner))
            return DROP;
        __builtin_memcpy(to.word, inner.to, sizeof inner.to);
        outer.ttl = inner.head[7];
        outer.protocol = SIT;
        ecn = inner.head[1] >> 4 & 3;
    } else {
        return DROP;
    }
    __u32 *remote = map_lookup(remotes, &to);
    if (!remote)
        return DROP;
    outer.tos = ecn == 3 ? 2 : ecn;
    outer.from = own->local;
    outer.to = *remote;
    __u32 sum = csum_diff(0, 0, &outer, sizeof outer, 0);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    outer.checksum = ~sum;
    __u32 uplink = own->uplink;
    if (adjust_room(skb, OUTER, ROOM_MAC, FIXED_GSO | ENCAP_IPV4) || store(skb, ETHERNET, &outer, sizeof outer, 0))
        return DROP;
    return redirect_neigh(uplink, 0, 0, 0);
}

SEC("tc/decap") int decap(struct __sk_buff *skb)
{
    struct ipv4 outer;
    struct ethernet link = {};
    __u32 zero = 0;
    struct settings *own = map_lookup(settings, &zero);

    if (!own || skb->protocol != BE16(IPV4) || load(skb, ETHERNET, &outer, sizeof outer))
        return NEXT;
    if (outer.version != 0x45 || outer.to != own->local || outer.fragment & BE16(0x3FFF))
        return NEXT;
    if ((outer.protocol != IPIP && outer.protocol != SIT) || !map_lookup(senders, &outer.from))
        return NEXT;
    __builtin_memcpy(link.to, own->mac, sizeof link.to);
    link.protocol = outer.protocol == IPIP ? BE16(IPV4) : BE16(IPV6);
    __u32 device = own->device;
    __u64 kind = outer.protocol == IPIP ? DECAP_IPV4 : DECAP_IPV6;
    if (adjust_room(skb, -OUTER, ROOM_MAC, FIXED_GSO | kind) || store(skb, 0, &link, sizeof link, 0))
        return DROP;
    return redirect(device, TO_INGRESS);
}
