/* A server that never waits: one process, a listener for each CPU named, and a thread bound to that
 * CPU which polls it without blocking. From outside all threads just run. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

struct shard {
	int listener, cpu;
};

static void *spin(void *argument)
{
	struct shard *own = argument;
	int tid = syscall(SYS_gettid);
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(own->cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
	for (;;) {
		int connection = accept(own->listener, NULL, NULL);

		if (connection < 0)
			continue;
		dprintf(connection, "%d\n", tid);
		close(connection);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct shard shards[64];
	int one = 1, count = argc - 2;
	pthread_t thread;

	if (count < 1 || count > 64)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	for (int i = 0; i < count; i++) {
		struct sockaddr_in address = {.sin_family = AF_INET,
					      .sin_port = htons(atoi(argv[1]))};
		int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

		if (setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) ||
		    bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
		    listen(listener, 511)) {
			perror(argv[1]);
			return 1;
		}
		shards[i] = (struct shard){listener, atoi(argv[2 + i])};
	}
	for (int i = 1; i < count; i++)
		if (pthread_create(&thread, NULL, spin, &shards[i]))
			return 1;
	puts("ready");
	fflush(stdout);
	spin(&shards[0]);
}
