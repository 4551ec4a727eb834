package storage

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Sizes of the data path, in bytes unless the name says otherwise.
const (
	// BlockSize is the unit of mapping and of checksum.
	BlockSize = 4 << 10
	// ExtentSize is the unit of placement: extent i of a volume holds the bytes [i*ExtentSize, (i+1)*ExtentSize).
	ExtentSize = 4 << 20
	// BlocksPerExtent is the number of entries of an extent table.
	BlocksPerExtent = ExtentSize / BlockSize
	// MaxEntryPayloadBytes bounds the data of one log entry. Larger writes are split by the gateway.
	MaxEntryPayloadBytes = 1 << 20
)

// Limits. Each is checked where bytes enter the system, before anything is allocated for them.
const (
	// MinVolumeBytes is one block.
	MinVolumeBytes = BlockSize
	// MaxVolumeBytes is the largest volume: 256 TiB, 2^26 extents.
	MaxVolumeBytes = 256 << 40
	// MaxVolumeNameBytes is the length of a DNS label, so that a volume name is valid in every orchestrator.
	MaxVolumeNameBytes = 63
	// SessionWindow is the number of unanswered requests that one session may have in one group: a sequence
	// number s is not sent before s-SessionWindow was answered.
	SessionWindow = 1024
)

// ClusterID names a cluster for ever. Two clusters never share one; zero is not valid.
type ClusterID [16]byte

// StoreID names a store (a data directory on one disk) for ever; zero is not valid.
type StoreID [16]byte

// NodeID names a node within its cluster. The catalog hands them out in ascending order from 1 and never twice.
type NodeID uint32

// GroupID names a Raft group within its cluster. CatalogGroup is the catalog; data groups ascend from 1.
type GroupID uint32

// CatalogGroup is the GroupID under which the catalog's Raft traffic travels.
const CatalogGroup GroupID = 0

// Incarnation counts the replicas that one store has ever held of one group. A replica that lost what it had
// promised comes back under the next incarnation, as a new member.
type Incarnation uint32

// VolumeID names a volume for ever: the catalog hands them out in ascending order from 1.
type VolumeID uint64

// ExtentIndex counts extents within a volume from 0.
type ExtentIndex uint32

// SessionID names a session for ever: the catalog hands them out in ascending order from 1; zero is no session.
type SessionID uint64

// AttachmentID names a holder's right to use a volume for ever: the catalog hands them out in ascending order from 1;
// zero is no attachment.
type AttachmentID uint64

// Epoch is a volume's snapshot counter.
type Epoch uint64

// Generation is a volume's attach counter.
type Generation uint64

// String returns 32 hexadecimal digits in the grouping of RFC 9562.
func (id ClusterID) String() string { return formatUUID(id) }

// String returns 32 hexadecimal digits in the grouping of RFC 9562.
func (id StoreID) String() string { return formatUUID(id) }

// IsZero reports whether the identifier was never set.
func (id ClusterID) IsZero() bool { return id == ClusterID{} }

// IsZero reports whether the identifier was never set.
func (id StoreID) IsZero() bool { return id == StoreID{} }

// ParseClusterID is the inverse of ClusterID.String.
func ParseClusterID(s string) (ClusterID, error) {
	b, err := parseUUID(s)
	return ClusterID(b), err
}

// ParseStoreID is the inverse of StoreID.String.
func ParseStoreID(s string) (StoreID, error) {
	b, err := parseUUID(s)
	return StoreID(b), err
}

func (id NodeID) String() string       { return strconv.FormatUint(uint64(id), 10) }
func (id GroupID) String() string      { return strconv.FormatUint(uint64(id), 10) }
func (id VolumeID) String() string     { return strconv.FormatUint(uint64(id), 10) }
func (id SessionID) String() string    { return strconv.FormatUint(uint64(id), 10) }
func (id AttachmentID) String() string { return strconv.FormatUint(uint64(id), 10) }
func (g Generation) String() string    { return strconv.FormatUint(uint64(g), 10) }
func (e Epoch) String() string         { return strconv.FormatUint(uint64(e), 10) }
func (x ExtentIndex) String() string   { return strconv.FormatUint(uint64(x), 10) }

func formatUUID(b [16]byte) string {
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func parseUUID(s string) (b [16]byte, err error) {
	h := strings.ReplaceAll(s, "-", "")
	if len(h) != 32 {
		return b, fmt.Errorf("uuid %q: want 32 hexadecimal digits", s)
	}
	if _, err := hex.Decode(b[:], []byte(h)); err != nil {
		return [16]byte{}, fmt.Errorf("uuid %q: %w", s, err)
	}
	return b, nil
}

// CheckVolumeName returns an error of KindInvalid unless name is a DNS label (RFC 1123): 1 to 63 lower-case
// letters, digits and hyphens, with a letter or digit at both ends.
func CheckVolumeName(name string) error {
	fail := func(why string) error {
		return &Error{Op: "check volume name", Kind: KindInvalid, Subject: strconv.Quote(name),
			Err: fmt.Errorf("%s; use 1 to %d lower-case letters, digits and hyphens, with a letter or digit at both ends",
				why, MaxVolumeNameBytes)}
	}
	switch {
	case name == "":
		return fail("the name is empty")
	case len(name) > MaxVolumeNameBytes:
		return fail(fmt.Sprintf("the name has %d characters", len(name)))
	case name[0] == '-' || name[len(name)-1] == '-':
		return fail("the name begins or ends with a hyphen")
	}
	for _, c := range name { // characters, not bytes: the refused one is shown
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return fail(fmt.Sprintf("character %q is not allowed", c))
		}
	}
	return nil
}

// VolumeLimits bound what the users of one volume may ask for per second, at each gateway that serves it. 0 is no limit.
type VolumeLimits struct {
	// MaxIOPS counts requests that read, write, zero or discard.
	MaxIOPS int64 `json:"max_iops,omitempty"`
	// MaxBytesPerSecond counts the bytes of reads and of writes together.
	MaxBytesPerSecond int64 `json:"max_bytes_per_second,omitempty"`
}

// The bounds of limits that are not 0. Below the lower ones a host's queue takes longer than a host waits before it takes
// a device for lost.
const (
	MinIOPS           = 10
	MaxIOPS           = 1_000_000_000
	MinBytesPerSecond = 1 << 20
	MaxBytesPerSecond = 1 << 40
)

// Check returns an error of KindInvalid unless each limit is 0 or within its bounds.
func (l VolumeLimits) Check() error {
	switch {
	case l.MaxIOPS != 0 && (l.MaxIOPS < MinIOPS || l.MaxIOPS > MaxIOPS):
		return &Error{Op: "check limits", Kind: KindInvalid, Err: fmt.Errorf(
			"a limit of %d requests a second is not possible; use %d to %d, or 0 for no limit", l.MaxIOPS, MinIOPS, MaxIOPS)}
	case l.MaxBytesPerSecond != 0 && (l.MaxBytesPerSecond < MinBytesPerSecond || l.MaxBytesPerSecond > MaxBytesPerSecond):
		return &Error{Op: "check limits", Kind: KindInvalid, Err: fmt.Errorf(
			"a limit of %d bytes a second is not possible; use %d (1 MiB) to %d (1 TiB), or 0 for no limit", l.MaxBytesPerSecond,
			MinBytesPerSecond, MaxBytesPerSecond)}
	}
	return nil
}

// CheckVolumeSize returns an error of KindInvalid unless sizeBytes is a multiple of BlockSize within the limits.
func CheckVolumeSize(sizeBytes int64) error {
	fail := func(why string) error {
		return &Error{Op: "check volume size", Kind: KindInvalid, Subject: strconv.FormatInt(sizeBytes, 10),
			Err: fmt.Errorf("%s", why)}
	}
	switch {
	case sizeBytes < MinVolumeBytes:
		return fail(fmt.Sprintf("a volume has at least %d bytes", MinVolumeBytes))
	case sizeBytes > MaxVolumeBytes:
		return fail("a volume has at most 256 TiB")
	case sizeBytes%BlockSize != 0:
		return fail(fmt.Sprintf("the size must be a multiple of %d; the next one is %d", BlockSize,
			(sizeBytes/BlockSize+1)*BlockSize))
	}
	return nil
}
