// Package blockdev tells a block device of this host from another that has got its number since. Device numbers are used
// again: a loop device that somebody frees ("losetup -D"), or a kernel NBD device that is disconnected, gives its path to
// whoever asks next. A path alone, remembered, is therefore no device.
//
// The host's gateway says which device is a volume's (Identity, host.Attachment.Identity); whoever writes to it, formats or
// mounts it opens it once with OpenOwned, and keeps it open meanwhile: an open device stays what it is, so that its path and
// /proc/self/fd/N lead to it for as long.
//
// The package knows nothing of volumes and gateways. Its functions may be called concurrently.
package blockdev

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	storage "github.com/storaged/storaged"
)

// Identity is what a block device is told by, whatever its path. The zero value is not known, and equal to none.
type Identity struct {
	// FileDevice and FileInode are st_dev and st_ino of the file that a loop device lies over; 0 for other devices.
	FileDevice, FileInode uint64
	// Backend is the backend identifier of a kernel NBD device; empty for other devices.
	Backend string
	// Sequence is the kernel's number of what the device is (BLKGETDISKSEQ), which never comes again before the host is
	// started anew; 0: not known, on Linux before 5.15.
	Sequence uint64
}

// IsZero reports whether nothing is known.
func (i Identity) IsZero() bool { return i == Identity{} }

// String returns the identity as ParseIdentity reads it: "loop FILE-DEVICE FILE-INODE SEQUENCE", or "nbd BACKEND SEQUENCE";
// empty for none.
func (i Identity) String() string {
	switch {
	case i.Backend != "":
		return fmt.Sprintf("nbd %s %d", i.Backend, i.Sequence)
	case i.FileDevice != 0 || i.FileInode != 0:
		return fmt.Sprintf("loop %d %d %d", i.FileDevice, i.FileInode, i.Sequence)
	}
	return ""
}

// MarshalText implements encoding.TextMarshaler; the text is String's.
func (i Identity) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (i *Identity) UnmarshalText(text []byte) (err error) {
	*i, err = ParseIdentity(string(text))
	return err
}

// ParseIdentity is the inverse of Identity.String.
func ParseIdentity(text string) (Identity, error) {
	var id Identity
	var err error
	if strings.HasPrefix(text, "nbd ") {
		_, err = fmt.Sscanf(text, "nbd %s %d", &id.Backend, &id.Sequence)
	} else if text != "" {
		_, err = fmt.Sscanf(text, "loop %d %d %d", &id.FileDevice, &id.FileInode, &id.Sequence)
	}
	if err != nil || id.String() != text {
		return Identity{}, storage.E("read", storage.KindInvalid, "device identity "+strconv.Quote(text), errors.New("it is none that this version knows"))
	}
	return id, nil
}

// differs returns in words what tells the device that was found from the one that is wanted; nil if nothing does.
func (i Identity) differs(found Identity) error {
	switch {
	case i.Backend != found.Backend && found.Backend == "":
		return errors.New("it is no connected NBD device any more")
	case i.Backend != found.Backend:
		return fmt.Errorf("it is connected to %q, not to %q", found.Backend, i.Backend)
	case found.FileDevice == 0 && found.FileInode == 0 && i.FileInode != 0:
		return errors.New("the loop device lies over no file any more")
	case i.FileDevice != found.FileDevice || i.FileInode != found.FileInode:
		return errors.New("the loop device lies over another file")
	case i.Sequence != 0 && found.Sequence != 0 && i.Sequence != found.Sequence:
		return errors.New("it was taken apart and made anew")
	}
	return nil
}
