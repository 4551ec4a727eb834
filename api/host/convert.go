package host

import (
	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/internal/blockdev"
	pb "github.com/storaged/storaged/proto/storage/host/v1"
)

// This file turns the structs of this package into messages and back. Values that a newer gateway may send and this
// version does not know read as "unknown".

var (
	accesses = api.EnumTable[storage.Access, pb.Access]{
		{storage.AccessExclusive, pb.Access_ACCESS_EXCLUSIVE},
		{storage.AccessShared, pb.Access_ACCESS_SHARED},
		{storage.AccessReaders, pb.Access_ACCESS_READERS},
		{"", pb.Access_ACCESS_UNSPECIFIED},
	}
	vias = api.EnumTable[Via, pb.Via]{
		{ViaAuto, pb.Via_VIA_UNSPECIFIED},
		{ViaNBD, pb.Via_VIA_NBD},
		{ViaFUSE, pb.Via_VIA_FUSE},
	}
	states = api.EnumTable[State, pb.State]{
		{StateConnecting, pb.State_STATE_CONNECTING},
		{StateReady, pb.State_STATE_READY},
		{StateDetaching, pb.State_STATE_DETACHING},
		{StateFailed, pb.State_STATE_FAILED},
	}
)

// RequestToProto turns a valid request into its message.
func RequestToProto(r Request) *pb.AttachRequest {
	return &pb.AttachRequest{Volume: r.Volume, Access: accesses.ToProto(r.Access), ReadOnly: r.ReadOnly, TakeOver: r.TakeOver,
		Via: vias.ToProto(r.Via), AttachmentId: uint64(r.AttachmentID)}
}

// RequestFromProto is the inverse of RequestToProto. What it returns was not validated.
func RequestFromProto(m *pb.AttachRequest) Request {
	return Request{Volume: m.GetVolume(), Access: accesses.FromProto(m.GetAccess()), ReadOnly: m.GetReadOnly(),
		TakeOver: m.GetTakeOver(), Via: vias.FromProto(m.GetVia()), AttachmentID: storage.AttachmentID(m.GetAttachmentId())}
}

// AttachmentToProto turns an attachment into its message.
func AttachmentToProto(a Attachment) *pb.Attachment {
	return &pb.Attachment{Volume: a.Volume, VolumeId: uint64(a.VolumeID), AttachmentId: uint64(a.ID), Generation: uint64(a.Generation),
		Access: accesses.ToProto(a.Access), ReadOnly: a.ReadOnly, Via: vias.ToProto(a.Via), Device: a.Device, SizeBytes: a.SizeBytes,
		State: states.ToProto(a.State), Reason: a.Reason, Link: a.Link, Identity: a.Identity.String(), Since: api.TimeToProto(a.Since)}
}

// AttachmentFromProto is the inverse of AttachmentToProto; nil gives a zero Attachment.
func AttachmentFromProto(m *pb.Attachment) Attachment {
	if m == nil {
		return Attachment{}
	}
	identity, err := blockdev.ParseIdentity(m.GetIdentity())
	if err != nil { // of a kind that a newer gateway knows: equal to no device, so that none is taken for it
		identity = blockdev.Identity{Backend: m.GetIdentity()}
	}
	return Attachment{Volume: m.GetVolume(), Identity: identity, VolumeID: storage.VolumeID(m.GetVolumeId()), ID: storage.AttachmentID(m.GetAttachmentId()),
		Generation: storage.Generation(m.GetGeneration()), Access: accesses.FromProto(m.GetAccess()), ReadOnly: m.GetReadOnly(),
		Via: vias.FromProto(m.GetVia()), Device: m.GetDevice(), Link: m.GetLink(), SizeBytes: m.GetSizeBytes(),
		State: states.FromProto(m.GetState()), Reason: m.GetReason(), Since: api.TimeFromProto(m.GetSince())}
}

// InfoToProto turns an Info into its message.
func InfoToProto(i Info) *pb.InfoResponse {
	m := &pb.InfoResponse{HostId: i.HostID, Zone: i.Zone, Version: i.Version, Endpoints: i.Endpoints}
	for _, v := range i.Vias {
		if via := vias.ToProto(v); via != pb.Via_VIA_UNSPECIFIED {
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
	cluster, _ := storage.ParseClusterID(m.GetClusterId())
	return Info{HostID: m.GetHostId(), Zone: m.GetZone(), Version: m.GetVersion(), Endpoints: m.GetEndpoints(),
		Vias: api.Each(m.GetVias(), vias.FromProto), Cluster: cluster}
}
