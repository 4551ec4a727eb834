package attach

import (
	"os"
)

// Keeper holds descriptors beyond the end of the process that uses them. Its methods may be called concurrently.
type Keeper interface {
	// Keep holds f's open file under a name, in the place of what it held under that name.
	Keep(name string, f *os.File) error
	// Kept returns a descriptor of its own of what is held under a name, nil if there is nothing.
	Kept(name string) (*os.File, error)
	// Forget closes what is held under a name. A name that holds nothing is no error.
	Forget(name string) error
}
