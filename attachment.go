package storage

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
)

// Access says who else may use a volume.
type Access string

// The access modes.
const (
	// AccessExclusive: nobody.
	AccessExclusive Access = "exclusive"
	// AccessShared: others who share it too; all of them read what any of them wrote.
	AccessShared Access = "shared"
	// AccessReaders: others who only read it too. It goes with read-only.
	AccessReaders Access = "readers"
)

// Valid reports whether there is such an access mode.
func (a Access) Valid() bool { return a == AccessExclusive || a == AccessShared || a == AccessReaders }

// Beside reports whether two may use a volume at the same time: what readers read nobody changes, not even one who shares.
func (a Access) Beside(b Access) bool { return a == b && a != AccessExclusive }

// HolderKind says what a holder is.
type HolderKind string

// The kinds of holders.
const (
	// HolderHost is a host, by its own gateway.
	HolderHost HolderKind = "host"
	// HolderNBD is a node, for the plain NBD clients that are connected to it. Only nodes attach as this kind.
	HolderNBD HolderKind = "nbd"
)

// Machine is what a gateway of a host says of where it runs: an id of the machine and of the gateway's state directory, a
// dot, and an id of the machine's present boot. Two machines that call themselves the same host are told apart by it, a copy of
// a machine from its original, and a gateway that was started again from both. Empty: not said, and equal to all.
type Machine string

// Same reports whether both are one machine in one boot: a gateway of the one may follow that of the other at once.
func (m Machine) Same(o Machine) bool { return m == "" || o == "" || m == o }

// Kept reports whether both are one machine, whatever has been started since.
func (m Machine) Kept(o Machine) bool {
	a, _, _ := strings.Cut(string(m), ".")
	b, _, _ := strings.Cut(string(o), ".")
	return a == "" || b == "" || a == b
}

// Holder is who may use a volume.
type Holder struct {
	// ID names the holder: 1 to MaxHolderBytes letters, digits and - . _ : / @, beginning with a letter or digit. A host has the
	// id that it calls itself by, a node the one that NBDHolder says.
	ID   string     `json:"id"`
	Kind HolderKind `json:"kind"`
	// Host is the host's name, for people; may be empty.
	Host string `json:"host,omitempty"`
	Node NodeID `json:"node,omitempty"` // of kind nbd only
	// Machine is where the host's gateway runs; it does not make another holder.
	Machine Machine `json:"machine,omitempty"`
}

// MaxHolderBytes bounds Holder.ID.
const MaxHolderBytes = 128

// NBDHolderPrefix begins the ids of holders of kind nbd, and no others. Those of read-only clients end with nbdReadOnly, which no name
// of a node can hold.
const (
	NBDHolderPrefix = "nbd:"
	nbdReadOnly     = "/read-only"
)

// NBDHolder returns the holder that a node is for the plain NBD clients that are connected to it. Read-only clients are
// another one: a node may have both, if they share the volume.
func NBDHolder(node NodeID, name string, readOnly bool) Holder {
	h := Holder{ID: NBDHolderPrefix + name, Kind: HolderNBD, Node: node}
	if readOnly {
		h.ID += nbdReadOnly
	}
	return h
}

// ForClient returns the holder that the node is for one of its clients alone, named as it is told apart from others: an
// address, or the subject of a certificate. Exclusive attachments are held so, because two clients of one node would write over
// each other as those of two do.
func (h Holder) ForClient(client string) Holder {
	sum := sha256.Sum256([]byte(client))
	id, readOnly := strings.CutSuffix(h.ID, nbdReadOnly)
	h.ID, h.Host = id+"/"+hex.EncodeToString(sum[:8]), client
	if readOnly {
		h.ID += nbdReadOnly
	}
	return h
}

// Same reports whether two holders are one, whatever people call its host.
func (h Holder) Same(o Holder) bool { return h.ID == o.ID && h.Kind == o.Kind && h.Node == o.Node }

// String returns "host web-1 (holder 4c4c…)", "NBD clients of node a", or "NBD client 10.0.0.7 of node a".
func (h Holder) String() string {
	switch {
	case h.Kind == HolderNBD:
		node, _, _ := strings.Cut(strings.TrimPrefix(h.ID, NBDHolderPrefix), "/")
		if h.Host != "" {
			return "NBD client " + h.Host + " of node " + node
		}
		return "NBD clients of node " + node
	case h.Host == "" || h.Host == h.ID:
		return "host " + h.ID
	}
	return "host " + h.Host + " (holder " + h.ID + ")"
}

// Attachment is a holder's right to use a volume. Its generation is the volume's: when that moves, attachments end.
type Attachment struct {
	ID         AttachmentID `json:"id"`
	Volume     VolumeID     `json:"volume"`
	Holder     Holder       `json:"holder"`
	Access     Access       `json:"access"`
	ReadOnly   bool         `json:"read_only,omitempty"`
	Generation Generation   `json:"generation"` // what carries an older one is refused
	Since      time.Time    `json:"since"`
	// Silent: its sessions have expired, and it has opened none since.
	Silent bool `json:"silent,omitempty"`
}
