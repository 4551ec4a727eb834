//go:build kube

package kube

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"time"
)

// authority signs the certificates of the cluster's parts.
type authority struct {
	cert *x509.Certificate
	key  *rsa.PrivateKey
	next int64
}

func newAuthority(path string) (*authority, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert: cert, key: key, next: 2}, errors.Join(err, writePEM(path, "CERTIFICATE", der))
}

// issue writes path.crt and path.key for a name, a group and the names of a server.
func (a *authority) issue(path, name, group string, hosts ...string) error {
	subject := pkix.Name{CommonName: name}
	if group != "" {
		subject.Organization = []string{group}
	}
	return a.sign(path, subject, hosts)
}

// issueUnit writes those of one who belongs to an organizational unit, and is a client only.
func (a *authority) issueUnit(path, name, unit string) error {
	return a.sign(path, pkix.Name{CommonName: name, OrganizationalUnit: []string{unit}}, nil)
}

func (a *authority) sign(path string, subject pkix.Name, hosts []string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(a.next), Subject: subject, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: a.cert.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	a.next++
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	return errors.Join(writePEM(path+".crt", "CERTIFICATE", der), writePEM(path+".key", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)))
}

// serviceAccountKeys writes the keys that sign and check the tokens of pods.
func serviceAccountKeys(path string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	return errors.Join(err, writePEM(path+".key", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)), writePEM(path+".pub", "PUBLIC KEY", public))
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
