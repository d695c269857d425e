/* A server as textbooks have it: one process, one listener, blocked in accept(). */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

	if (argc != 2 || listener < 0)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	address.sin_port = htons(atoi(argv[1]));
	if (setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) ||
	    bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 511)) {
		perror(argv[1]);
		return 1;
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		int connection = accept(listener, NULL, NULL);

		if (connection < 0)
			continue;
		dprintf(connection, "%d\n", getpid());
		close(connection);
	}
}
