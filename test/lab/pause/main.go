// Command pause does nothing until it is told to end. It is the one process of a pod's sandbox in the lab: it holds the
// pod's namespaces while containers come and go.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
}
