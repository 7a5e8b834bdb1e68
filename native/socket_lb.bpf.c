/*
 * Services at the socket: the programs on a node's cgroup.
 *
 *   connect   a service's address is replaced by one of its endpoints before anything is sent, so no packet
 *             is ever translated; which service it was is kept with the socket (`connected`, of UDP sockets
 *             in `udp_users`)
 *   sendmsg   the same for each datagram of an unconnected UDP socket; it stays with its endpoint as long as
 *             the list has that (`datagrams`)
 *   recvmsg   what an endpoint answers comes from the service's address again
 *   getpeername   shows the service's address
 *   post_bind in the node's own namespace no port can be bound that is a node port
 *   release   a UDP socket is struck from `udp_users`
 *
 * What no map holds is passed on as it is: nftables answers for it. IPv4 and IPv6 are one: a map's address has
 * 16 bytes, and IPv4 is mapped into them (RFC 4291, 2.5.5.2), as AF_INET6 sockets have it.
 *
 * All hooks of one socket run under its lock, so what is kept with a socket needs no other. Maps are written by
 * kernel/bpf/, which has the same layouts (layout.py): change LAYOUT there with any struct here.
 */
#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define inline static inline __attribute__((always_inline))

static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const map_update)(void *map, const void *key, const void *value, __u64 flags) =
    (void *)BPF_FUNC_map_update_elem;
static long (*const map_delete)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static __u64 (*const cookie_of)(void *ctx) = (void *)BPF_FUNC_get_socket_cookie;
static __u32 (*const random_u32)(void) = (void *)BPF_FUNC_get_prandom_u32;
static __u64 (*const now_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static __u64 (*const netns_cookie)(void *ctx) = (void *)BPF_FUNC_get_netns_cookie;
static void *(*const kept)(void *map, void *sk, void *value, __u64 flags) = (void *)BPF_FUNC_sk_storage_get;
static int (*const set_retval)(int value) = (void *)BPF_FUNC_set_retval;

enum { TCP = 6, UDP = 17, FAMILY_IPV4 = 4, FAMILY_IPV6 = 6, SLOTS = 8, IN_USE = 98 /* EADDRINUSE */ };

struct address { __u32 word[4]; };
struct end { struct address address; __u16 port; __u16 none; };                  /* of an endpoint */
struct frontend { struct address address; __u16 port; __u8 protocol; __u8 none; };
struct node_port { __u8 family; __u8 protocol; __u16 port; };
struct list { __u32 count; __u32 timeout_s; };
struct place { __u64 list; __u32 index; __u32 none; };
struct member { __u64 list; struct end end; __u32 none; };
struct client { __u64 list; __u64 netns; };
struct choice { struct end end; __u32 none; __u64 used_ns; };
struct bound { __u64 list; struct end service; struct end backend; };            /* list 0: nothing */
struct slots { __u32 next; __u32 none; struct bound slot[SLOTS]; };
struct settings { __u32 layout; __u32 none; __u64 node_netns; };

/* The loader puts the maps in place of these names. */
extern char frontends[], node_ports[], node_addresses[], lists[], backends[], members[], affinity[],
    connected[], datagrams[], udp_users[], settings[];

inline int same(const struct address *a, const struct address *b)
{
    return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
           a->word[3] == b->word[3];
}

inline int same_end(const struct end *a, const struct end *b)
{
    return a->port == b->port && same(&a->address, &b->address);
}

inline void read_end(struct bpf_sock_addr *ctx, int six, struct end *end)
{
    if (six) {
        end->address.word[0] = ctx->user_ip6[0];
        end->address.word[1] = ctx->user_ip6[1];
        end->address.word[2] = ctx->user_ip6[2];
        end->address.word[3] = ctx->user_ip6[3];
    } else {
        end->address.word[0] = end->address.word[1] = 0;
        end->address.word[2] = __builtin_bswap32(0xffff);
        end->address.word[3] = ctx->user_ip4;
    }
    end->port = (__u16)ctx->user_port;
    end->none = 0;
}

inline void write_end(struct bpf_sock_addr *ctx, int six, const struct end *end)
{
    if (six) {
        ctx->user_ip6[0] = end->address.word[0];
        ctx->user_ip6[1] = end->address.word[1];
        ctx->user_ip6[2] = end->address.word[2];
        ctx->user_ip6[3] = end->address.word[3];
    } else {
        ctx->user_ip4 = end->address.word[3];
    }
    ctx->user_port = end->port;
}

inline int mapped(const struct address *a)
{
    return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == __builtin_bswap32(0xffff);
}

/* The list that answers for an address and port; 0: none that is held here. */
inline __u64 list_of(const struct end *to, __u8 protocol)
{
    struct frontend key = {.address = to->address, .port = to->port, .protocol = protocol};
    __u64 *list = map_lookup(frontends, &key);
    if (list)
        return *list;
    struct node_port port = {
        .family = mapped(&to->address) ? FAMILY_IPV4 : FAMILY_IPV6, .protocol = protocol, .port = to->port};
    list = map_lookup(node_ports, &port);
    if (!list || !map_lookup(node_addresses, &to->address))
        return 0;
    return *list;
}

inline __u64 *member_of(__u64 list, const struct end *end)
{
    struct member key = {.list = list, .end = *end};
    return map_lookup(members, &key);
}

/* Draws an endpoint. 0 if there is none, or the list is just being changed: the packet path answers then. */
inline int draw(struct bpf_sock_addr *ctx, __u64 number, struct end *end)
{
    struct list *list = map_lookup(lists, &number);
    if (!list || !list->count)
        return 0;
    struct client client = {.list = number};
    struct choice *before = 0;
    __u64 *member = 0;
    if (list->timeout_s) {
        client.netns = netns_cookie(ctx);
        before = map_lookup(affinity, &client);
        if (before && now_ns() - before->used_ns < list->timeout_s * 1000000000ULL) {
            *end = before->end;
            member = member_of(number, end);
        }
    }
    if (!member) {
        struct place place = {.list = number, .index = random_u32() % list->count};
        struct end *found = map_lookup(backends, &place);
        if (!found)
            return 0;
        *end = *found;
        member = member_of(number, end);
    }
    if (member)
        __sync_fetch_and_add(member, 1);
    if (list->timeout_s) {
        struct choice after = {.end = *end, .used_ns = now_ns()};
        map_update(affinity, &client, &after, BPF_ANY);
    }
    return 1;
}

inline int held(__u32 protocol)
{
    return protocol == TCP || protocol == UDP;
}

/*
 * What a connected socket is bound to. The kernel tells user space what is kept with a TCP socket, but not what is
 * with a UDP socket: those have a map of their own.
 */
inline struct bound *bound_to(struct bpf_sock_addr *ctx)
{
    if (ctx->protocol == UDP) {
        __u64 cookie = cookie_of(ctx);
        return map_lookup(udp_users, &cookie);
    }
    return kept(connected, ctx->sk, 0, 0);
}

inline int bind_to(struct bpf_sock_addr *ctx, const struct bound *bound)
{
    if (ctx->protocol == UDP) {
        __u64 cookie = cookie_of(ctx);
        return !map_update(udp_users, &cookie, bound, BPF_ANY);
    }
    struct bound *mine = kept(connected, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (mine)
        *mine = *bound;
    return mine != 0;
}

inline int on_connect(struct bpf_sock_addr *ctx, int six)
{
    struct bound bound = {};
    if (!held(ctx->protocol) || !ctx->sk)
        return 1;
    read_end(ctx, six, &bound.service);
    bound.list = list_of(&bound.service, ctx->protocol);
    if (bound.list && draw(ctx, bound.list, &bound.backend)) {
        if (bind_to(ctx, &bound)) /* or there is no memory to know the service again */
            write_end(ctx, six, &bound.backend);
        return 1;
    }
    struct bound *before = bound_to(ctx);
    if (before)
        before->list = 0;
    return 1;
}

inline int on_sendmsg(struct bpf_sock_addr *ctx, int six)
{
    struct end to, end;
    if (!held(ctx->protocol) || !ctx->sk)
        return 1;
    read_end(ctx, six, &to);
    __u64 list = list_of(&to, ctx->protocol);
    if (!list)
        return 1;
    struct slots *slots = kept(datagrams, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (!slots)
        return 1;
    struct bound *mine = 0;
#pragma unroll
    for (int i = 0; i < SLOTS; i++)
        if (!mine && slots->slot[i].list && same_end(&slots->slot[i].service, &to))
            mine = &slots->slot[i];
    if (mine && mine->list == list) {
        end = mine->backend;
        if (member_of(list, &end)) {
            write_end(ctx, six, &end);
            return 1;
        }
    }
    if (!draw(ctx, list, &end))
        return 1;
    if (!mine) {
        mine = &slots->slot[slots->next % SLOTS];
        slots->next++;
    }
    mine->list = list;
    mine->service = to;
    mine->backend = end;
    write_end(ctx, six, &end);
    return 1;
}

/* The service that stands for the peer; recvmsg and getpeername must always let go on. */
inline int backwards(struct bpf_sock_addr *ctx, int six, int datagram)
{
    struct end from, service;
    int found = 0;
    if (!held(ctx->protocol) || !ctx->sk)
        return 1;
    struct bound *bound = bound_to(ctx);
    struct slots *slots = datagram ? kept(datagrams, ctx->sk, 0, 0) : 0;
    read_end(ctx, six, &from);
    if (bound && bound->list && same_end(&bound->backend, &from)) {
        service = bound->service;
        found = 1;
    } else if (slots) {
#pragma unroll
        for (int i = 0; i < SLOTS; i++)
            if (!found && slots->slot[i].list && same_end(&slots->slot[i].backend, &from)) {
                service = slots->slot[i].service;
                found = 1;
            }
    }
    asm volatile("" : "+r"(ctx)); /* the verifier wants whole offsets from ctx where it is written */
    if (found)
        write_end(ctx, six, &service);
    return 1;
}

inline int on_bind(struct bpf_sock *sk, int six)
{
    __u32 zero = 0;
    struct settings *known = map_lookup(settings, &zero);
    if (!held(sk->protocol) || !known || netns_cookie(sk) != known->node_netns)
        return 1;
    struct address own = {};
    int any_six = 0, four = !six;
    if (six) {
        own.word[0] = sk->src_ip6[0];
        own.word[1] = sk->src_ip6[1];
        own.word[2] = sk->src_ip6[2];
        own.word[3] = sk->src_ip6[3];
        any_six = !own.word[0] && !own.word[1] && !own.word[2] && !own.word[3];
        four = mapped(&own);
    } else {
        own.word[2] = __builtin_bswap32(0xffff);
        own.word[3] = sk->src_ip4;
    }
    int any = any_six || (four && !own.word[3]);
    if (!any && !map_lookup(node_addresses, &own))
        return 1; /* node ports are no concern of loopback and other addresses */
    struct node_port port = {.family = four ? FAMILY_IPV4 : FAMILY_IPV6,
                             .protocol = sk->protocol,
                             .port = __builtin_bswap16((__u16)sk->src_port)};
    if (!map_lookup(node_ports, &port))
        return 1;
    set_retval(-IN_USE);
    return 0;
}

SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx) { return on_connect(ctx, 0); }
SEC("cgroup/connect6") int connect6(struct bpf_sock_addr *ctx) { return on_connect(ctx, 1); }
SEC("cgroup/sendmsg4") int sendmsg4(struct bpf_sock_addr *ctx) { return on_sendmsg(ctx, 0); }
SEC("cgroup/sendmsg6") int sendmsg6(struct bpf_sock_addr *ctx) { return on_sendmsg(ctx, 1); }
SEC("cgroup/recvmsg4") int recvmsg4(struct bpf_sock_addr *ctx) { return backwards(ctx, 0, 1); }
SEC("cgroup/recvmsg6") int recvmsg6(struct bpf_sock_addr *ctx) { return backwards(ctx, 1, 1); }
SEC("cgroup/peername4") int peername4(struct bpf_sock_addr *ctx) { return backwards(ctx, 0, 0); }
SEC("cgroup/peername6") int peername6(struct bpf_sock_addr *ctx) { return backwards(ctx, 1, 0); }
SEC("cgroup/bind4") int bind4(struct bpf_sock *ctx) { return on_bind(ctx, 0); }
SEC("cgroup/bind6") int bind6(struct bpf_sock *ctx) { return on_bind(ctx, 1); }

SEC("cgroup/release") int release(struct bpf_sock *ctx)
{
    __u64 cookie = cookie_of(ctx);
    if (ctx->protocol == UDP)
        map_delete(udp_users, &cookie);
    return 1;
}
