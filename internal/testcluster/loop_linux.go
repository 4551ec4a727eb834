package testcluster

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// LoopFile returns the name of the file that a loop device was made with, cut off after 63 bytes. sysfs does not tell it: for a
// gateway's device, whose file has no path any more, it shows "/disk". It is "" if the device does not answer soon, because its
// gateway does not run.
func LoopFile(device string) string {
	answer := make(chan string, 1)
	go func() { answer <- askLoop(device) }() // ends with the wait for a gateway, of another test say
	select {
	case file := <-answer:
		return file
	case <-time.After(5 * time.Second):
		return ""
	}
}

func askLoop(device string) string {
	f, err := os.OpenFile(device, os.O_RDONLY, 0)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.File_name[:])
}
