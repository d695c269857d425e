// A server as Go programs are: one process, one listener, goroutines on any of its threads.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
)

const reuseport = 0xf // SO_REUSEPORT, which package syscall does not name

func main() {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		controlled := raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, reuseport, 1)
		})
		if err == nil {
			err = controlled
		}
		return err
	}}
	listener, err := config.Listen(context.Background(), "tcp4", "0.0.0.0:"+os.Args[1])
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	for {
		connection, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			fmt.Fprintln(connection, os.Getpid())
			connection.Close()
		}()
	}
}
