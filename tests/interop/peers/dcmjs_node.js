// A node made of dcmjs-dimse, for the interoperability tests. It reads and writes every data set anew.
//
//   scp PORT FOLDER MOVE_PORT FILE...   C-ECHO; C-STORE into FOLDER; C-FIND and C-MOVE (to MOVE_PORT) of FILEs
//   send PORT CALLED_AET FILE...        C-ECHO, then C-STORE of FILEs over one association

'use strict';
const path = require('path');
const { Client, Dataset, Scp, Server, log } = require('dcmjs-dimse');
const { CEchoRequest, CStoreRequest } = require('dcmjs-dimse').requests;
const { CEchoResponse, CFindResponse, CMoveResponse, CStoreResponse } = require('dcmjs-dimse').responses;
const { PresentationContextResult, Status } = require('dcmjs-dimse').constants;

if (log) log.setLevel('error');
const [mode, port, ...rest] = process.argv.slice(2);

function answer(kind, request, status, dataset) {
  const response = kind.fromRequest(request);
  response.setStatus(status);
  if (dataset) response.setDataset(dataset);
  return response;
}

function send(calledAet, port, files, done) {
  const client = new Client();
  const statuses = [];
  const requests = [new CEchoRequest(), ...files.map((file) => new CStoreRequest(file))];
  for (const request of requests) {
    request.on('response', (response) => statuses.push(response.getStatus()));
    client.addRequest(request);
  }
  client.on('networkError', (error) => done(error, statuses));
  client.on('closed', () => done(undefined, statuses));
  client.send('127.0.0.1', port, 'DCMJS', calledAet);
}

class Node extends Scp {
  associationRequested(association) {
    this.association = association;
    for (const { id } of association.getPresentationContexts()) {
      const context = association.getPresentationContext(id);
      context.setResult(PresentationContextResult.Accept, context.getTransferSyntaxUids()[0]);
    }
    this.sendAssociationAccept();
  }

  cEchoRequest(request, callback) {
    callback(answer(CEchoResponse, request, Status.Success));
  }

  cStoreRequest(request, callback) {
    const target = path.join(rest[0], request.getAffectedSopInstanceUid());
    request.getDataset().toFile(target, (error) => {
      callback(answer(CStoreResponse, request, error ? Status.ProcessingFailure : Status.Success));
    });
  }

  cFindRequest(request, callback) {
    const keys = request.getDataset().getElements();
    const unique = { STUDY: 'StudyInstanceUID', SERIES: 'SeriesInstanceUID', IMAGE: 'SOPInstanceUID' };
    const found = new Map();
    for (const file of rest.slice(2)) {
      const elements = Dataset.fromFile(file).getElements();
      if (keys.SeriesInstanceUID && keys.SeriesInstanceUID !== elements.SeriesInstanceUID) continue;
      const match = Object.fromEntries(Object.keys(keys).map((key) => [key, elements[key] ?? keys[key]]));
      found.set(elements[unique[keys.QueryRetrieveLevel]], new Dataset(match));
    }
    callback([
      ...[...found.values()].map((dataset) => answer(CFindResponse, request, Status.Pending, dataset)),
      answer(CFindResponse, request, Status.Success),
    ]);
  }

  cMoveRequest(request, callback) {
    const files = rest.slice(2);
    send('HARMONY_MOVE', Number(rest[1]), files, (error, statuses) => {
      const good = statuses.slice(1).filter((status) => status === Status.Success).length;
      const final = answer(CMoveResponse, request, error ? Status.ProcessingFailure : Status.Success);
      final.setCompleted(good);
      final.setFailures(files.length - good);
      final.setWarnings(0);
      callback([final]);
    });
  }

  associationReleaseRequested() {
    this.sendAssociationReleaseResponse();
  }
}

if (mode === 'scp') {
  const server = new Server(Node);
  server.on('networkError', (error) => console.error('network error:', error));
  server.listen(Number(port));
} else {
  send(rest[0], Number(port), rest.slice(1), (error, statuses) => {
    if (error || statuses.length !== rest.length || statuses.some((status) => status !== Status.Success)) {
      console.error(error, statuses);
      process.exit(1);
    }
    process.exit(0);
  });
}
