/*
 * podlane-cni: the program a container runtime executes for the plugin types of podlane.
 *
 * It knows nothing of networking. It hands its CNI_ environment, its standard input and the opened
 * CNI_NETNS (the path may exist only in the runtime's mount namespace) to the agent's unix socket,
 * prints the answer and ends with the answer's status. The form of both: src/podlane/cni/wire.py.
 *
 * Without an agent:  VERSION  is answered here
 *                    DEL      is written to the spool, for the agent's next start, and succeeds
 *                    STATUS   fails with code 50 (the plugin is not available)
 *                    others   fail with code 11 (try again later)
 *
 * PODLANE_CNI_SOCKET and PODLANE_CNI_SPOOL name another socket and another spool directory,
 * PODLANE_CNI_NAME another name than that of the executable. An agent with paths of its own installs
 * a copy that has them written over the two constants below (src/podlane/agent/install.py).
 * src/podlane/cni/shim.py does the same in Python; one table of tests holds for both.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define VERSIONS                                                                                       \
    "{\"cniVersion\": \"1.1.0\", \"supportedVersions\": [\"0.1.0\", \"0.2.0\", \"0.3.0\", \"0.3.1\", " \
    "\"0.4.0\", \"1.0.0\", \"1.1.0\"]}"

enum { IO_FAILURE = 5, TRY_AGAIN_LATER = 11, NOT_AVAILABLE = 50 };

extern char **environ;

/* Not static, so that no compiler takes the values for final. */
char installed_socket[PATH_MAX] = "PODLANE_CNI_SOCKET=/run/podlane/cni.sock";
char installed_spool[PATH_MAX] = "PODLANE_CNI_SPOOL=/var/lib/podlane/cni-spool";

struct bytes {
    char *data;
    size_t size, room;
};

static void append(struct bytes *b, const void *data, size_t size)
{
    if (b->size + size > b->room) {
        b->room = (b->size + size) * 2;
        b->data = realloc(b->data, b->room);
        if (!b->data)
            abort();
    }
    if (size)
        memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void read_all(int fd, struct bytes *into)
{
    char part[65536];
    for (;;) {
        ssize_t n = read(fd, part, sizeof part);
        if (n > 0)
            append(into, part, (size_t)n);
        else if (n == 0 || errno != EINTR)
            return;
    }
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

static const char *setting(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static const char *path_setting(const char *name, const char *installed)
{
    return setting(name, installed + strlen(name) + 1);
}

/* Header, environment, standard input. name: the executable's, for IPAM types that others execute. */
static void pack_request(struct bytes *request, const struct bytes *input, const char *name)
{
    static const char key[] = "PODLANE_CNI_NAME=";
    struct bytes block = {0};
    for (char **entry = environ; *entry; entry++)
        if (!strncmp(*entry, "CNI_", 4))
            append(&block, *entry, strlen(*entry) + 1);
    append(&block, key, sizeof key - 1);
    append(&block, name, strlen(name) + 1);
    uint32_t lengths[2] = {htonl((uint32_t)block.size), htonl((uint32_t)input->size)};
    append(request, lengths, sizeof lengths);
    append(request, block.data, block.size);
    append(request, input->data, input->size);
    free(block.data);
}

/* All in one piece, if the socket takes it: the agent is woken once. The descriptor goes with the start. */
static int send_request(int s, const struct bytes *request, int netns)
{
    union {
        struct cmsghdr align;
        char data[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {request->data, request->size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    memset(&control, 0, sizeof control);
    if (netns >= 0) {
        message.msg_control = control.data;
        message.msg_controllen = sizeof control.data;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &netns, sizeof(int));
    }
    ssize_t n;
    do
        n = sendmsg(s, &message, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -1;
    return write_all(s, request->data + n, request->size - (size_t)n);
}

/* Asks the agent. Returns 0 with its whole answer, or -1 with the reason in why. */
static int ask(const struct bytes *request, int netns, struct bytes *answer, char *why, size_t why_size)
{
    const char *path = path_setting("PODLANE_CNI_SOCKET", installed_socket);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    answer->size = 0;
    if (strlen(path) >= sizeof address.sun_path) {
        snprintf(why, why_size, "%s: path too long for a socket", path);
        return -1;
    }
    strcpy(address.sun_path, path);
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s < 0 || connect(s, (struct sockaddr *)&address, sizeof address)) {
        snprintf(why, why_size, "%s: %s", path, strerror(errno));
        if (s >= 0)
            close(s);
        return -1;
    }
    /* A write that fails is not the end: the agent may have answered before it closed. */
    send_request(s, request, netns);
    read_all(s, answer);
    close(s);
    if (answer->size < 4) {
        snprintf(why, why_size, "%s: it ended before it answered", path);
        return -1;
    }
    return 0;
}

static int print_answer(const struct bytes *answer)
{
    uint32_t status;
    memcpy(&status, answer->data, 4);
    write_all(1, answer->data + 4, answer->size - 4);
    return (int)ntohl(status);
}

/* As strchr, but no set has the NUL. */
static int among(const char *set, char c)
{
    return c && strchr(set, c);
}

/* The value of the first "cniVersion" of the configuration: errors are answered in its version. */
static void config_version(const struct bytes *input, char *version, size_t room)
{
    static const char key[] = "\"cniVersion\"";
    size_t n = 0;
    snprintf(version, room, "1.1.0");
    for (size_t i = 0; i + sizeof key - 1 <= input->size; i++) {
        if (memcmp(input->data + i, key, sizeof key - 1))
            continue;
        for (i += sizeof key - 1; i < input->size && among(" \t\r\n:", input->data[i]); i++)
            ;
        if (i >= input->size || input->data[i++] != '"')
            return;
        while (i + n < input->size && n < room - 1 && among("0123456789.", input->data[i + n]))
            n++;
        if (n && i + n < input->size && input->data[i + n] == '"')
            snprintf(version, room, "%.*s", (int)n, input->data + i);
        return;
    }
}

__attribute__((format(printf, 3, 4))) static int fail(const struct bytes *input, int code, const char *format, ...)
{
    char message[1024], version[16];
    struct bytes out = {0};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    config_version(input, version, sizeof version);
    char start[96];
    int n = snprintf(start, sizeof start, "{\"cniVersion\": \"%s\", \"code\": %d, \"msg\": \"", version, code);
    append(&out, start, (size_t)n);
    for (const char *c = message; *c; c++) {
        if (*c == '"' || *c == '\\')
            append(&out, "\\", 1);
        append(&out, *c < ' ' || *c > '~' ? "?" : c, 1);
    }
    append(&out, "\"}", 2);
    write_all(1, out.data, out.size);
    return 1;
}

/* Writes the request where the agent finds it. Returns 0 and the file's path, or -1 with errno. */
static int spool(const struct bytes *request, char *path, size_t room)
{
    const char *directory = path_setting("PODLANE_CNI_SPOOL", installed_spool);
    char parent[PATH_MAX], temporary[PATH_MAX];
    struct timespec now;
    snprintf(parent, sizeof parent, "%s", directory);
    for (char *slash = parent + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = 0;
        mkdir(parent, 0700);
    }
    mkdir(directory, 0700);
    clock_gettime(CLOCK_REALTIME, &now);
    int n = snprintf(path, room, "%s/%010lld%09ld-%d.request", directory, (long long)now.tv_sec, now.tv_nsec,
                     (int)getpid());
    if (n < 0 || (size_t)n >= room - 4) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(temporary, path, (size_t)n);
    memcpy(temporary + n, ".tmp", 5);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return -1;
    int failed = write_all(fd, request->data, request->size) || fsync(fd);
    failed |= close(fd);
    if (failed || rename(temporary, path)) {
        int error = errno;
        unlink(temporary);
        errno = error;
        return -1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct bytes input = {0}, request = {0}, answer = {0};
    char why[512], path[PATH_MAX];
    const char *command = setting("CNI_COMMAND", "");
    const char *netns_path = setting("CNI_NETNS", "");

    signal(SIGPIPE, SIG_IGN);
    if (strcmp(command, "VERSION"))
        read_all(0, &input);
    const char *slash = argc ? strrchr(argv[0], '/') : NULL;
    pack_request(&request, &input, setting("PODLANE_CNI_NAME", slash ? slash + 1 : argc ? argv[0] : ""));
    int netns = *netns_path ? open(netns_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;

    if (!ask(&request, netns, &answer, why, sizeof why))
        return print_answer(&answer);
    if (!strcmp(command, "VERSION")) {
        write_all(1, VERSIONS, sizeof VERSIONS - 1);
        return 0;
    }
    if (!strcmp(command, "DEL")) {
        if (spool(&request, path, sizeof path))
            return fail(&input, IO_FAILURE, "the podlane agent does not answer (%s), and the spool: %s", why,
                        strerror(errno));
        /* An agent that came up meanwhile may have read the spool already. */
        if (ask(&request, netns, &answer, why, sizeof why))
            return 0;
        unlink(path);
        return print_answer(&answer);
    }
    return fail(&input, strcmp(command, "STATUS") ? TRY_AGAIN_LATER : NOT_AVAILABLE,
                "the podlane agent does not answer (%s)", why);
}
