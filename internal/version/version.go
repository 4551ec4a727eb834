// Package version says what was built. Both binaries print it, and nodes report it. It is constant after the link.
package version

import (
	"runtime"
	"runtime/debug"
)

// Version and Commit are set by the linker: -X github.com/storaged/storaged/internal/version.Version=v1.2.3.
var (
	Version = "dev"
	Commit  = ""
)

// Revision returns the commit that the binary was built from, as far as it is known.
func Revision() string {
	if Commit != "" {
		return Commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return ""
}

// Platform returns operating system and architecture: "linux/amd64".
func Platform() string { return runtime.GOOS + "/" + runtime.GOARCH }
