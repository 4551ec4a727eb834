package storage

import (
	"encoding/hex"
	"fmt"
	"log/slog"
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

// MarshalText implements encoding.TextMarshaler: in JSON ids are text.
func (id ClusterID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// MarshalText implements encoding.TextMarshaler: in JSON ids are text.
func (id StoreID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ClusterID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseClusterID(string(b))
	return err
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *StoreID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseStoreID(string(b))
	return err
}

// LogValue implements slog.LogValuer.
func (id ClusterID) LogValue() slog.Value { return slog.StringValue(id.String()) }

// LogValue implements slog.LogValuer.
func (id StoreID) LogValue() slog.Value { return slog.StringValue(id.String()) }

// IsZero reports whether the identifier was never set.
func (id ClusterID) IsZero() bool { return id == ClusterID{} }

// IsZero reports whether the identifier was never set.
func (id StoreID) IsZero() bool { return id == StoreID{} }

// ParseClusterID is the inverse of ClusterID.String. With an error the id is zero.
func ParseClusterID(s string) (ClusterID, error) {
	b, err := parseUUID(s)
	return ClusterID(b), err
}

// ParseStoreID is the inverse of StoreID.String. With an error the id is zero.
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
