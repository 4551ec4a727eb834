package api

import (
	"errors"
	"fmt"

	storage "github.com/storaged/storaged"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// LeastVerifyRate is the least rate, in bytes a second, at which a volume is verified.
const LeastVerifyRate = 1 << 20

// MaxVerifySkip bounds the replicas that a step leaves out.
const MaxVerifySkip = 256

// VerifyStep asks for one step of the verification of a volume: a few seconds of work of each replica of one of its groups. The zero values of
// Group and From begin; each answer says where the next step goes on.
type VerifyStep struct {
	Name string
	// ID is the volume's, from the first answer; 0: whichever has the name.
	ID storage.VolumeID
	// Group is which of the volume's groups, in the order of its list, and From the extent to go on from.
	Group int
	From  storage.ExtentIndex
	// RateBytes are read in a second at each store; 0: what its scrub may.
	RateBytes int64
	// Skip are replicas that are not asked.
	Skip []VerifyReplica
}

// VerifyReplica names the replica of a group on a node.
type VerifyReplica struct {
	Group storage.GroupID
	Node  storage.NodeID
}

// Verified is what a step has brought.
type Verified struct {
	ID storage.VolumeID
	// Group and From are where the next step goes on. Done: this was the last one.
	Group int
	From  storage.ExtentIndex
	Done  bool
	// Busy: a store is verifying another volume, and the step is to be asked for again.
	Busy bool
	// Bytes were read, in all copies. Of the blocks that were damaged Mended were written anew, Lost no replica can read, and Waiting one may
	// have that does not answer or has other bytes there.
	Bytes, Mended, Lost, Waiting int64
	// DamagedPages are pages of tables that could not be read; nothing is known of what they map.
	DamagedPages int64
	// Compared extents were compared between replicas.
	Compared int64
	// Findings are what people have to know, at most MaxVerifyFindings.
	Findings []VerifyFinding
}

// MaxVerifyFindings bounds Verified.Findings.
const MaxVerifyFindings = 64

// VerifyFindingKind says what was found. storagectl prints it to programs as it stands.
type VerifyFindingKind string

// What may be found.
const (
	// FoundUnchecked: a replica did not answer. Nothing was done in this step that counts; it may be asked for again, or without the replica.
	FoundUnchecked VerifyFindingKind = "unchecked"
	// FoundLost: blocks cannot be read at any replica. FoundWaiting: they are not mended yet. FoundTables: tables are damaged.
	FoundLost    VerifyFindingKind = "lost"
	FoundWaiting VerifyFindingKind = "waiting"
	FoundTables  VerifyFindingKind = "tables"
	// FoundDiffers: replicas have different contents. With Node, it is that replica which is not as most are.
	FoundDiffers VerifyFindingKind = "differs"
	// FoundUncompared: replicas could not be compared.
	FoundUncompared VerifyFindingKind = "uncompared"
)

// VerifyFinding is one thing that is not as it should be. storagectl prints it to programs as it stands.
type VerifyFinding struct {
	Kind  VerifyFindingKind `json:"kind"`
	Group storage.GroupID   `json:"group"`
	// Node is the replica's, 0: of all of them.
	Node     storage.NodeID `json:"node,omitempty"`
	NodeName string         `json:"node_name,omitempty"`
	// Extent is the one that differs, or was not compared; 0 with the other kinds.
	Extent storage.ExtentIndex `json:"extent,omitempty"`
	Text   string              `json:"text"`
}

var verifyFindings = EnumTable[VerifyFindingKind, pb.VerifyFindingKind]{
	{FoundUnchecked, pb.VerifyFindingKind_VERIFY_FINDING_KIND_UNCHECKED},
	{FoundLost, pb.VerifyFindingKind_VERIFY_FINDING_KIND_LOST},
	{FoundWaiting, pb.VerifyFindingKind_VERIFY_FINDING_KIND_WAITING},
	{FoundTables, pb.VerifyFindingKind_VERIFY_FINDING_KIND_TABLES},
	{FoundDiffers, pb.VerifyFindingKind_VERIFY_FINDING_KIND_DIFFERS},
	{FoundUncompared, pb.VerifyFindingKind_VERIFY_FINDING_KIND_UNCOMPARED},
}

// check returns what is wrong with the request besides its name.
func (s *VerifyStep) check() error {
	switch {
	case s.RateBytes != 0 && s.RateBytes < LeastVerifyRate:
		return fmt.Errorf("the rate is %d bytes a second; use %d at least, or 0", s.RateBytes, LeastVerifyRate)
	case s.Group < 0 || s.Group > MaxVolumeGroups || len(s.Skip) > MaxVerifySkip:
		return errors.New("the request does not go on from an answer")
	}
	return nil
}

// VerifyStepToProto returns the message.
func VerifyStepToProto(s VerifyStep) *pb.VerifyVolumeRequest {
	return &pb.VerifyVolumeRequest{Name: s.Name, Id: uint64(s.ID), Group: uint32(s.Group), FromExtent: uint32(s.From), RateBytes: s.RateBytes,
		Skip: Each(s.Skip, func(r VerifyReplica) *pb.VerifyReplica {
			return &pb.VerifyReplica{Group: uint32(r.Group), Node: uint32(r.Node)}
		})}
}

// VerifyStepFromProto reads the message.
func VerifyStepFromProto(r *pb.VerifyVolumeRequest) VerifyStep {
	return VerifyStep{Name: r.GetName(), ID: storage.VolumeID(r.GetId()), Group: int(min(r.GetGroup(), MaxVolumeGroups+1)), From: storage.ExtentIndex(r.GetFromExtent()),
		RateBytes: r.GetRateBytes(), Skip: Each(r.GetSkip(), func(r *pb.VerifyReplica) VerifyReplica {
			return VerifyReplica{storage.GroupID(r.GetGroup()), storage.NodeID(r.GetNode())}
		})}
}

// VerifiedToProto returns the message.
func VerifiedToProto(v Verified) *pb.VerifyVolumeResponse {
	return &pb.VerifyVolumeResponse{Id: uint64(v.ID), Group: uint32(v.Group), FromExtent: uint32(v.From), Done: v.Done, Busy: v.Busy, Bytes: v.Bytes,
		MendedBlocks: v.Mended, LostBlocks: v.Lost, WaitingBlocks: v.Waiting, DamagedPages: v.DamagedPages, ComparedExtents: v.Compared,
		Findings: Each(v.Findings, func(f VerifyFinding) *pb.VerifyFinding {
			return &pb.VerifyFinding{Kind: verifyFindings.ToProto(f.Kind), Group: uint32(f.Group), Node: uint32(f.Node), NodeName: f.NodeName, Extent: uint32(f.Extent), Text: clip(f.Text)}
		})}
}

// VerifiedFromProto reads the message.
func VerifiedFromProto(r *pb.VerifyVolumeResponse) Verified {
	return Verified{ID: storage.VolumeID(r.GetId()), Group: int(r.GetGroup()), From: storage.ExtentIndex(r.GetFromExtent()), Done: r.GetDone(), Busy: r.GetBusy(),
		Bytes: r.GetBytes(), Mended: r.GetMendedBlocks(), Lost: r.GetLostBlocks(), Waiting: r.GetWaitingBlocks(), DamagedPages: r.GetDamagedPages(), Compared: r.GetComparedExtents(),
		Findings: Each(r.GetFindings(), func(f *pb.VerifyFinding) VerifyFinding {
			return VerifyFinding{Kind: verifyFindings.FromProto(f.GetKind()), Group: storage.GroupID(f.GetGroup()), Node: storage.NodeID(f.GetNode()),
				NodeName: f.GetNodeName(), Extent: storage.ExtentIndex(f.GetExtent()), Text: f.GetText()}
		})}
}
