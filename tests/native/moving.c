/* Preloaded under a reader: its writer moves on between any two reads of the first block's control words.
 *
 * What is read comes from a file of before. At the read of the number `reads` the writer gets on: what is read from then on
 * comes from a second file, and `more` reads later from a third one, which shows it stopped in the middle of a commit.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, CONTROL = 512, CONTROL_BYTES = 64, SEQ = 2 };

static int active;
static int64_t reads_done, first_reads, second_reads;
static uint64_t seq_moved;
static int first_fd, second_fd, third_fd;

void moving_start(int64_t reads, int64_t more, int first, int second, int third) {
    first_reads = reads, second_reads = more;
    first_fd = first, second_fd = second, third_fd = third;
    reads_done = 0;
    seq_moved = 0;
    active = 1;
}

void moving_end(void) {
    active = 0;
}

int64_t moving_reads(void) {
    return reads_done;
}

ssize_t pread64(int fd, void *buffer, size_t count, off64_t offset) {
    const int is_control = count == CONTROL_BYTES && offset == PAGE + CONTROL;
    ssize_t got;
    if (!active) return syscall(SYS_pread64, fd, buffer, count, offset);
    reads_done++;
    if (reads_done >= first_reads + second_reads) return syscall(SYS_pread64, third_fd, buffer, count, offset);
    if (reads_done >= first_reads) return syscall(SYS_pread64, second_fd, buffer, count, offset);
    got = syscall(SYS_pread64, first_fd, buffer, count, offset);
    if (is_control) ((uint64_t *)buffer)[SEQ] += seq_moved += 2;
    return got;
}
