package storage

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
)

// VolumeState says whether a volume can be opened.
type VolumeState string

// The states of a volume.
const (
	VolumeReady VolumeState = "ready"
	// VolumeDeleting is gone for hosts and its name is free again; the groups are being told to forget it.
	VolumeDeleting VolumeState = "deleting"
)

// Volume is one block device, as the catalog keeps it.
type Volume struct {
	ID        VolumeID `json:"id"`
	Name      string   `json:"name"`
	SizeBytes int64    `json:"size_bytes"`
	// Groups is the stripe list: extent i lives in Groups[i mod len(Groups)]. Its length is a power of two.
	Groups     []GroupID   `json:"groups"`
	Epoch      Epoch       `json:"epoch"`
	Generation Generation  `json:"generation"`
	State      VolumeState `json:"state"`
	CreatedAt  time.Time   `json:"created_at"`
	// Limits are what each gateway holds the volume's users to.
	Limits VolumeLimits `json:"limits,omitzero"`
	// Labels are what people and tools find the volume by; CheckLabels says what they may be.
	Labels map[string]string `json:"labels,omitempty"`

	// What follows stays among the nodes: the API does not show it.

	// Fenced is the generation that every group of the volume is known to refuse older ones than; Fenced <= Generation.
	// While it is less, nobody gets a session: what was sent under older generations may still land.
	Fenced Generation `json:"fenced,omitempty"`
	// Moved is how the volume came to its generation; nil for the first.
	Moved *Move `json:"moved,omitempty"`
	// Revision is the log index of the last change, of its attachments too; it ascends with every change.
	Revision  uint64 `json:"revision"`
	RequestID string `json:"request_id,omitempty"` // of the request that made it
}

// Clone returns a copy that shares nothing with v.
func (v Volume) Clone() Volume {
	v.Groups, v.Labels = slices.Clone(v.Groups), maps.Clone(v.Labels)
	if v.Moved != nil {
		m := *v.Moved
		v.Moved = &m
	}
	return v
}

// Move is why a volume's generation was raised.
type Move struct {
	// By is who has taken the volume over; zero when its holder was detached.
	By Holder    `json:"by,omitzero"`
	At time.Time `json:"at"`
}

// VolumeRef points at a volume by its name, its id, or both: then they must belong together. A name can come to mean another
// volume, an id never does.
type VolumeRef struct {
	ID   VolumeID `json:"id,omitempty"`
	Name string   `json:"name,omitempty"`
}

// ByID refers to a volume by its id.
func ByID(id VolumeID) VolumeRef { return VolumeRef{ID: id} }

// ByName refers to a volume by its name.
func ByName(name string) VolumeRef { return VolumeRef{Name: name} }

// String returns what an error message calls the volume.
func (r VolumeRef) String() string {
	if r.Name != "" {
		return "volume " + r.Name
	}
	return "volume " + r.ID.String()
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

// Change returns the change that sets both limits.
func (l VolumeLimits) Change() LimitsChange {
	return LimitsChange{MaxIOPS: &l.MaxIOPS, MaxBytesPerSecond: &l.MaxBytesPerSecond}
}

// LimitsChange changes limits of a volume: what is nil stays as it is, 0 is no limit.
type LimitsChange struct {
	MaxIOPS           *int64 `json:"max_iops,omitempty"`
	MaxBytesPerSecond *int64 `json:"max_bytes_per_second,omitempty"`
}

// Of returns the limits l with the change.
func (c LimitsChange) Of(l VolumeLimits) VolumeLimits {
	if c.MaxIOPS != nil {
		l.MaxIOPS = *c.MaxIOPS
	}
	if c.MaxBytesPerSecond != nil {
		l.MaxBytesPerSecond = *c.MaxBytesPerSecond
	}
	return l
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
