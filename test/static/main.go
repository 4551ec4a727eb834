// Command static reports whether executables are static: whether they run where there is nothing else, as in the image of
// deploy/Dockerfile, or on a host with another C library. `make build` asks it about what it has built.
//
//	go run ./test/static FILE...
package main

import (
	"debug/elf"
	"fmt"
	"os"
)

func main() {
	failed := len(os.Args) < 2
	for _, path := range os.Args[1:] {
		if err := check(path); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

// check returns why the executable is not static.
func check(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("it is linked dynamically, and runs only where there is the C library it was built with; build it with CGO_ENABLED=0")
		}
	}
	return nil
}
