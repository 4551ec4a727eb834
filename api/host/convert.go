package host

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/blockdev"
	pb "github.com/storaged/storaged/proto/storage/host/v1"
)

// This file turns the structs of this package into messages and back. Values that a newer gateway may send and this
// version does not know read as "unknown".

const unknown = "unknown"

// pair is one row of an enumeration's translation.
type pair[D ~string, W comparable] struct {
	domain D
	wire   W
}

func toWire[D ~string, W comparable](table []pair[D, W], d D) (w W, ok bool) {
	for _, p := range table {
		if p.domain == d {
			return p.wire, true
		}
	}
	return w, false
}

func fromWire[D ~string, W comparable](table []pair[D, W], w W) D {
	for _, p := range table {
		if p.wire == w {
			return p.domain
		}
	}
	return unknown
}

// The first row of a wire value is what it reads as.
var (
	accesses = []pair[Access, pb.Access]{
		{AccessExclusive, pb.Access_ACCESS_EXCLUSIVE},
		{AccessShared, pb.Access_ACCESS_SHARED},
		{"", pb.Access_ACCESS_UNSPECIFIED},
	}
	vias = []pair[Via, pb.Via]{
		{ViaAuto, pb.Via_VIA_UNSPECIFIED},
		{ViaNBD, pb.Via_VIA_NBD},
		{ViaFUSE, pb.Via_VIA_FUSE},
		{"", pb.Via_VIA_UNSPECIFIED},
	}
	states = []pair[State, pb.State]{
		{StateConnecting, pb.State_STATE_CONNECTING},
		{StateReady, pb.State_STATE_READY},
		{StateDetaching, pb.State_STATE_DETACHING},
		{StateFailed, pb.State_STATE_FAILED},
	}
)

// RequestToProto turns a valid request into its message.
func RequestToProto(r Request) *pb.AttachRequest {
	access, _ := toWire(accesses, r.Access)
	via, _ := toWire(vias, r.Via)
	return &pb.AttachRequest{Volume: r.Volume, Access: access, ReadOnly: r.ReadOnly, TakeOver: r.TakeOver, Via: via,
		AttachmentId: r.AttachmentID}
}

// RequestFromProto is the inverse of RequestToProto. What it returns was not validated.
func RequestFromProto(m *pb.AttachRequest) Request {
	return Request{Volume: m.GetVolume(), Access: fromWire(accesses, m.GetAccess()), ReadOnly: m.GetReadOnly(),
		TakeOver: m.GetTakeOver(), Via: fromWire(vias, m.GetVia()), AttachmentID: m.GetAttachmentId()}
}

// AttachmentToProto turns an attachment into its message.
func AttachmentToProto(a Attachment) *pb.Attachment {
	access, _ := toWire(accesses, a.Access)
	via, _ := toWire(vias, a.Via)
	state, _ := toWire(states, a.State)
	m := &pb.Attachment{Volume: a.Volume, VolumeId: uint64(a.VolumeID), AttachmentId: a.ID, Generation: uint64(a.Generation),
		Access: access, ReadOnly: a.ReadOnly, Via: via, Device: a.Device, SizeBytes: a.SizeBytes, State: state,
		Reason: a.Reason, Link: a.Link, Identity: a.Identity.String()}
	if !a.Since.IsZero() {
		m.Since = timestamppb.New(a.Since)
	}
	return m
}

// AttachmentFromProto is the inverse of AttachmentToProto; nil gives a zero Attachment.
func AttachmentFromProto(m *pb.Attachment) Attachment {
	if m == nil {
		return Attachment{}
	}
	var since time.Time
	if m.GetSince() != nil {
		since = m.GetSince().AsTime()
	}
	identity, err := blockdev.ParseIdentity(m.GetIdentity())
	if err != nil { // of a kind that a newer gateway knows: equal to no device, so that none is taken for it
		identity = blockdev.Identity{Backend: m.GetIdentity()}
	}
	return Attachment{Volume: m.GetVolume(), Identity: identity, VolumeID: storage.VolumeID(m.GetVolumeId()), ID: m.GetAttachmentId(),
		Generation: storage.Generation(m.GetGeneration()), Access: fromWire(accesses, m.GetAccess()), ReadOnly: m.GetReadOnly(),
		Via: fromWire(vias, m.GetVia()), Device: m.GetDevice(), Link: m.GetLink(), SizeBytes: m.GetSizeBytes(),
		State: fromWire(states, m.GetState()), Reason: m.GetReason(), Since: since}
}

// InfoToProto turns an Info into its message.
func InfoToProto(i Info) *pb.InfoResponse {
	m := &pb.InfoResponse{HostId: i.HostID, Zone: i.Zone, Version: i.Version, Endpoints: i.Endpoints}
	for _, v := range i.Vias {
		if via, ok := toWire(vias, v); ok {
			m.Vias = append(m.Vias, via)
		}
	}
	if !i.Cluster.IsZero() {
		m.ClusterId = i.Cluster.String()
	}
	return m
}

// InfoFromProto is the inverse of InfoToProto. A cluster id that cannot be read is left zero.
func InfoFromProto(m *pb.InfoResponse) Info {
	i := Info{HostID: m.GetHostId(), Zone: m.GetZone(), Version: m.GetVersion(), Endpoints: m.GetEndpoints()}
	for _, v := range m.GetVias() {
		i.Vias = append(i.Vias, fromWire(vias, v))
	}
	if m.GetClusterId() != "" {
		i.Cluster, _ = storage.ParseClusterID(m.GetClusterId())
	}
	return i
}
