// A node made of dcm4che's network library, for the interoperability tests; data sets go in and out as they are.
//
//   scp PORT FOLDER MOVE_PORT FILE...   C-ECHO; C-STORE into FOLDER; C-FIND, C-GET and C-MOVE (to MOVE_PORT) of FILEs
//   send PORT CALLED_AET FILE...        C-ECHO, then C-STORE of FILEs over one association

import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Executors;
import org.dcm4che3.data.Attributes;
import org.dcm4che3.data.Tag;
import org.dcm4che3.data.VR;
import org.dcm4che3.io.DicomInputStream;
import org.dcm4che3.io.DicomOutputStream;
import org.dcm4che3.net.ApplicationEntity;
import org.dcm4che3.net.Association;
import org.dcm4che3.net.Connection;
import org.dcm4che3.net.DataWriter;
import org.dcm4che3.net.DataWriterAdapter;
import org.dcm4che3.net.Device;
import org.dcm4che3.net.Dimse;
import org.dcm4che3.net.DimseRSP;
import org.dcm4che3.net.InputStreamDataWriter;
import org.dcm4che3.net.NoPresentationContextException;
import org.dcm4che3.net.PDVInputStream;
import org.dcm4che3.net.Status;
import org.dcm4che3.net.TransferCapability;
import org.dcm4che3.net.pdu.AAssociateRQ;
import org.dcm4che3.net.pdu.PresentationContext;
import org.dcm4che3.net.service.BasicCEchoSCP;
import org.dcm4che3.net.service.BasicCFindSCP;
import org.dcm4che3.net.service.BasicCGetSCP;
import org.dcm4che3.net.service.BasicCMoveSCP;
import org.dcm4che3.net.service.BasicCStoreSCP;
import org.dcm4che3.net.service.BasicCStoreSCU;
import org.dcm4che3.net.service.BasicQueryTask;
import org.dcm4che3.net.service.BasicRetrieveTask;
import org.dcm4che3.net.service.DicomServiceException;
import org.dcm4che3.net.service.DicomServiceRegistry;
import org.dcm4che3.net.service.InstanceLocator;
import org.dcm4che3.net.service.QueryTask;
import org.dcm4che3.net.service.RetrieveTask;

public class Dcm4cheNode {
    static final String VERIFICATION = "1.2.840.10008.1.1";
    static final String ROOT = "1.2.840.10008.5.1.4.1.2.2.";
    static final String BIG_ENDIAN = "1.2.840.10008.1.2.2";
    static final String[] UNCOMPRESSED = {"1.2.840.10008.1.2.1", "1.2.840.10008.1.2"};

    static class Instance extends InstanceLocator {
        final File file;
        final long dataSetAt;
        final Attributes keys;

        static Instance of(String path) throws IOException {
            File file = new File(path);
            try (DicomInputStream in = new DicomInputStream(file)) {
                Attributes meta = in.readFileMetaInformation();
                long at = 144 + meta.getInt(Tag.FileMetaInformationGroupLength, 0);
                return new Instance(meta, file, at, in.readDataset(-1, Tag.PixelData));
            }
        }

        Instance(Attributes meta, File file, long dataSetAt, Attributes keys) {
            super(
                    meta.getString(Tag.MediaStorageSOPClassUID),
                    meta.getString(Tag.MediaStorageSOPInstanceUID),
                    meta.getString(Tag.TransferSyntaxUID),
                    file.toURI().toString());
            this.file = file;
            this.dataSetAt = dataSetAt;
            this.keys = keys;
        }

        DataWriter data() throws IOException {
            InputStream in = new FileInputStream(file);
            in.skip(dataSetAt);
            return new InputStreamDataWriter(in);
        }
    }

    static class Sender extends BasicCStoreSCU<Instance> {
        @Override
        protected String selectTransferSyntaxFor(Association association, Instance instance) throws Exception {
            Set<String> accepted = association.getTransferSyntaxesFor(instance.cuid);
            if (accepted.contains(instance.tsuid)) return instance.tsuid;
            boolean isPlain = instance.tsuid.equals(BIG_ENDIAN) || List.of(UNCOMPRESSED).contains(instance.tsuid);
            for (String syntax : UNCOMPRESSED) if (isPlain && accepted.contains(syntax)) return syntax;
            throw new NoPresentationContextException(instance.cuid, instance.tsuid);
        }

        @Override
        protected DataWriter createDataWriter(Instance instance, String syntax) throws IOException {
            if (syntax.equals(instance.tsuid)) return instance.data();
            try (DicomInputStream in = new DicomInputStream(instance.file)) {
                return new DataWriterAdapter(in.readDataset(-1, -1));
            }
        }
    }

    static ApplicationEntity entity(Connection connection) {
        Device device = new Device("dcm4che");
        device.setExecutor(Executors.newCachedThreadPool());
        device.setScheduledExecutor(Executors.newSingleThreadScheduledExecutor());
        ApplicationEntity entity = new ApplicationEntity("DCM4CHE");
        device.addConnection(connection);
        device.addApplicationEntity(entity);
        entity.addConnection(connection);
        return entity;
    }

    static Association connect(ApplicationEntity entity, int port, String calledAet, List<Instance> instances)
            throws Exception {
        AAssociateRQ rq = new AAssociateRQ();
        rq.setCalledAET(calledAet);
        rq.addPresentationContextFor(VERIFICATION, UNCOMPRESSED[1]);
        for (Instance instance : instances) rq.addPresentationContextFor(instance.cuid, instance.tsuid);
        Connection remote = new Connection();
        remote.setHostname("127.0.0.1");
        remote.setPort(port);
        return entity.connect(entity.getConnections().get(0), remote, rq);
    }

    public static void main(String[] args) throws Exception {
        int port = Integer.parseInt(args[1]);
        int first = args[0].equals("scp") ? 4 : 3;
        List<Instance> instances = new ArrayList<>();
        for (String path : Arrays.copyOfRange(args, first, args.length)) instances.add(Instance.of(path));
        if (args[0].equals("scp")) serve(port, new File(args[2]), Integer.parseInt(args[3]), instances);
        else send(port, args[2], instances);
    }

    static void send(int port, String calledAet, List<Instance> instances) throws Exception {
        Association association = connect(entity(new Connection()), port, calledAet, instances);
        check(association.cecho());
        for (Instance it : instances) check(association.cstore(it.cuid, it.iuid, 0, it.data(), it.tsuid));
        association.release();
        System.exit(0);
    }

    static void check(DimseRSP response) throws Exception {
        response.next();
        int status = response.getCommand().getInt(Tag.Status, -1);
        if (status != 0) throw new IOException("status " + Integer.toHexString(status));
    }

    static void serve(int port, File folder, int movePort, List<Instance> instances) throws Exception {
        Connection connection = new Connection();
        connection.setHostname("127.0.0.1");
        connection.setPort(port);
        ApplicationEntity entity = entity(connection);
        entity.setAssociationAcceptor(true);
        entity.addTransferCapability(new TransferCapability(null, "*", TransferCapability.Role.SCP, "*"));
        entity.addTransferCapability(new TransferCapability(null, "*", TransferCapability.Role.SCU, "*"));
        DicomServiceRegistry services = new DicomServiceRegistry();
        services.addDicomService(new BasicCEchoSCP());
        services.addDicomService(new BasicCStoreSCP("*") {
            @Override
            protected void store(
                    Association as, PresentationContext pc, Attributes rq, PDVInputStream data, Attributes rsp)
                    throws IOException {
                String iuid = rq.getString(Tag.AffectedSOPInstanceUID);
                String cuid = rq.getString(Tag.AffectedSOPClassUID);
                Attributes meta = as.createFileMetaInformation(iuid, cuid, pc.getTransferSyntax());
                try (OutputStream out = new FileOutputStream(new File(folder, iuid))) {
                    new DicomOutputStream(out, UNCOMPRESSED[0]).writeFileMetaInformation(meta);
                    data.copyTo(out);
                }
            }
        });
        services.addDicomService(new BasicCFindSCP(ROOT + "1") {
            @Override
            protected QueryTask calculateMatches(
                    Association as, PresentationContext pc, Attributes rq, Attributes keys) {
                Iterator<Attributes> matches = matches(instances, keys).iterator();
                return new BasicQueryTask(as, pc, rq, keys) {
                    @Override
                    public boolean hasMoreMatches() {
                        return matches.hasNext();
                    }

                    @Override
                    public Attributes nextMatch() {
                        return matches.next();
                    }
                };
            }
        });
        services.addDicomService(new BasicCGetSCP(ROOT + "3") {
            @Override
            protected RetrieveTask calculateMatches(
                    Association as, PresentationContext pc, Attributes rq, Attributes keys) {
                return new BasicRetrieveTask<>(Dimse.C_GET_RQ, as, pc, rq, instances, as, new Sender());
            }
        });
        services.addDicomService(new BasicCMoveSCP(ROOT + "2") {
            @Override
            protected RetrieveTask calculateMatches(
                    Association as, PresentationContext pc, Attributes rq, Attributes keys)
                    throws DicomServiceException {
                try {
                    Association to = connect(entity, movePort, rq.getString(Tag.MoveDestination), instances);
                    return new BasicRetrieveTask<>(Dimse.C_MOVE_RQ, as, pc, rq, instances, to, new Sender());
                } catch (Exception e) {
                    throw new DicomServiceException(Status.UnableToPerformSubOperations, e);
                }
            }
        });
        entity.setDimseRQHandler(services);
        entity.getDevice().bindConnections();
        System.out.println("listening");
    }

    static List<Attributes> matches(List<Instance> instances, Attributes keys) {
        String level = keys.getString(Tag.QueryRetrieveLevel);
        int unique = level.equals("IMAGE")
                ? Tag.SOPInstanceUID
                : level.equals("SERIES") ? Tag.SeriesInstanceUID : Tag.StudyInstanceUID;
        Attributes wanted = new Attributes(keys);
        wanted.remove(Tag.QueryRetrieveLevel);
        Map<String, Attributes> found = new LinkedHashMap<>();
        for (Instance instance : instances) {
            if (!instance.keys.matches(wanted, false, true)) continue;
            Attributes match = new Attributes(instance.keys, keys.tags());
            match.setString(Tag.QueryRetrieveLevel, VR.CS, level);
            found.putIfAbsent(instance.keys.getString(unique), match);
        }
        return new ArrayList<>(found.values());
    }
}
