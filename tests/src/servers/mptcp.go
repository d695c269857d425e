// A server that listens with multipath TCP, as Go programs do by default from 1.24 on.
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
)

const (
	reuseport = 0xf // SO_REUSEPORT, which package syscall does not name
	multipath = 262 // IPPROTO_MPTCP, which it does not name either
)

func main() {
	port, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, multipath)
	if err == nil {
		err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, reuseport, 1)
	}
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Port: port})
	}
	if err == nil {
		err = syscall.Listen(fd, 128)
	}
	if err != nil {
		panic(err)
	}
	listener, err := net.FileListener(os.NewFile(uintptr(fd), "listener"))
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
